"""Earth mover's distances: their time against the number of pixels, and the wavelet form against
the exact one.

    python -m benchmarks --parts emd     times and fitted exponents
    python -m benchmarks.transport       the table `RATIOS` of pcdm_lib/transport/exact.py (minutes)
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from benchmarks.timing import Clock, measure, quartiles
from pcdm_lib.experiments.studies.emd_cases import FAMILIES, difference
from pcdm_lib.transport import exact_emd, wavelet_emd
from pcdm_lib.transport.wavelets import RATIOS, Ratios, weighted_bands

EXACT_SIDES = (8, 16, 32, 64)
# below that, calls take longer than arithmetic; rows of 2^k numbers fight over the same lines of a
# cache
WAVELET_SIDES = (300, 600, 1200, 2400)


# ---------------------------------------------------------------- wavelet over exact


def ratios(wavelet: str, side: int, cases: int, seed: int, **options: Any) -> dict[str, np.ndarray]:
    """Wavelet distance over the exact Euclidean one on `cases` random differences of each
    family."""
    return {
        family: wavelet_emd(fs, wavelet, **options) / exact
        for family in FAMILIES
        for fs, exact in (_cases(family, side, cases, seed),)
    }


@functools.lru_cache(maxsize=9)
def _cases(family: str, side: int, cases: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences (cases, side, side) and their exact distances."""
    random = np.random.default_rng((seed, FAMILIES.index(family), side))
    fs = np.stack([difference(family, side, random) for _ in range(cases)])
    return fs, exact_emd(fs, np.zeros_like(fs))


def largest_ratio(wavelet: str, side: int, **options: Any) -> float:
    """The largest ratio of any difference of equal masses on side x side pixels, to rounding.

    Both distances are norms, and a difference of equal masses is its cheapest plan's arrows, each a
    dipole: so the largest ratio is a dipole's. The wavelet distance of two deltas is the l1
        distance of their weighted coefficients; all pairs are compared.
    """
    deltas = np.eye(side**2).reshape(-1, side, side)
    coefficients = np.concatenate(
        [
            weight * band.reshape(len(deltas), -1)
            for weight, band in weighted_bands(deltas, wavelet, **options)
        ],
        axis=1,
    )
    position = np.argwhere(np.ones((side, side))).astype(float)
    distance = cdist(position, position)
    np.fill_diagonal(distance, np.inf)
    return float((cdist(coefficients, coefficients, "cityblock") / distance).max())


def table(
    wavelets: Sequence[str], sides: Sequence[int], cases: int, seed: int
) -> dict[str, dict[int, Ratios]]:
    """What `RATIOS` holds, measured anew."""
    found: dict[str, dict[int, Ratios]] = {}
    for wavelet in wavelets:
        for side in sides:
            values = np.concatenate(list(ratios(wavelet, side, cases, seed).values()))
            found.setdefault(wavelet, {})[side] = Ratios(
                values.min(), float(np.median(values)), values.max(), largest_ratio(wavelet, side)
            )
    return found


# ---------------------------------------------------------------- time


def exponent(pixels: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log time against log pixels, by least squares."""
    return float(np.polyfit(np.log(pixels), np.log(seconds), 1)[0])


def times(seconds: float, clock: Clock, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each way: median times at the smallest and the largest side, and the exponent
    fitted over all; on white noise."""

    def exact(metric: str, solver: str) -> Callable[[np.ndarray], object]:
        return lambda f: exact_emd(f, np.zeros_like(f), metric=metric, solver=solver)

    ways = {
        "exact, Euclidean, POT": (exact("euclidean", "pot"), EXACT_SIDES),
        "exact, l1, POT": (exact("l1", "pot"), EXACT_SIDES),
        "exact, l1, grid": (exact("l1", "grid"), EXACT_SIDES),
        **{
            f"wavelet, {name}": (functools.partial(wavelet_emd, wavelet=name), WAVELET_SIDES)
            for name in RATIOS
        },
    }
    rows = []
    for name, (way, sides) in ways.items():
        row = {
            "what": name,
            "sides": f"{sides[0]} to {sides[-1]}",
            "seconds at the smallest": None,
            "seconds at the largest": None,
            "exponent in pixels": None,
        }
        rows.append(row)
        if "POT" in name and importlib.util.find_spec("ot") is None:
            row["sides"] = "POT is not installed"
            continue
        random = np.random.default_rng(seed)
        found = [
            quartiles(
                measure(functools.partial(way, difference("noise", side, random)), seconds, clock)
            )[1]
            for side in sides
        ]
        row |= {
            "seconds at the smallest": found[0],
            "seconds at the largest": found[-1],
            "exponent in pixels": exponent([s**2 for s in sides], found),
        }
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print the table of ratios as Python; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transport",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cases", type=int, default=1000, help="differences of each family, side and wavelet"
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for wavelet in RATIOS:
        for side, row in table([wavelet], options.sides, options.cases, options.seed)[
            wavelet
        ].items():
            print(
                f"{wavelet:8}{side:4}  {row.low:8.4g} {row.median:8.4g} {row.high:8.4g} "
                f"{row.largest:8.4g}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
