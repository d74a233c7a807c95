"""Out-of-distribution detection by typicality (Sect. 6.2): images whose code length is unlike that
of the model's own data, longer or shorter.

A batch of M images scores (Nalisnick et al. 2019, arXiv 1906.02994)

    | (1/M) sum_m -log P(x_m)  -  H_hat |        H_hat = (1/N) sum_n -log P(y_n),

with our bound in place of -log P, in bits per dimension. The setting is M = 1, N = 20. Here M
images make up a test batch, and N other images of the model's own data estimate its entropy H_hat:
images held back or trained on, disjoint from the tested ones. M and N are free.

Beside it stands the plain code length, high for an outlier: it fails where an outlier is simpler
than the data, because simple images have short codes under every model. And since the code length
of an image is a sum over scales, each scale has a typicality of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcdm_lib.advice import need
from pcdm_lib.likelihood.evaluation import evaluate
from pcdm_lib.models.cascade import Cascade

TOTAL = "total"
MAX, SUM = "max of scales", "sum of scales"


@dataclass(frozen=True)
class Scores:
    """Code lengths of n images.

    Attributes:
        estimates: (n, repeats, S) bits per dimension of the whole image, so that the scales of an
            image sum to its code length; the repeats are independent estimates.
        scales: their S names, coarsest first.
        times_per_image: network evaluations an image, scale and repeat.
        seed: of the noise.
        digests: one an image, of its pixels, by which an image in two sets is found.
    """

    estimates: np.ndarray
    scales: tuple[str, ...]
    times_per_image: int
    seed: int
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.estimates)

    @property
    def per_scale(self) -> np.ndarray:
        """(n, S) bits per dimension."""
        return self.estimates.mean(axis=1)

    @property
    def total(self) -> np.ndarray:
        """(n,) bits per dimension."""
        return self.per_scale.sum(axis=1)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of `columns`; a model of one scale has its total only."""
        return (*self.scales, TOTAL) if len(self.scales) > 1 else (TOTAL,)

    @property
    def columns(self) -> np.ndarray:
        """(n, len(names)) bits per dimension."""
        return self._columns(self.per_scale)

    @property
    def noise(self) -> dict[str, float]:
        """Standard error of one image's code length from the Monte-Carlo noise, root mean square
        over the images; nan for one repeat."""
        repeats = self.estimates.shape[1]
        if repeats < 2:
            return dict.fromkeys(self.names, math.nan)
        variance = self._columns(self.estimates).var(axis=1, ddof=1).mean(axis=0) / repeats
        return dict(zip(self.names, map(float, np.sqrt(variance))))

    def part(self, chosen: slice | Sequence[int] | np.ndarray) -> Scores:
        """The scores of some of the images."""
        places = np.arange(len(self))[chosen]
        return Scores(
            self.estimates[places],
            self.scales,
            self.times_per_image,
            self.seed,
            tuple(self.digests[i] for i in places),
        )

    def to_dict(self) -> dict[str, Any]:
        """Mean, spread over images and noise of every column, for a results file (`records.finite`
        takes out what does not exist)."""
        spread = (
            self.columns.std(axis=0, ddof=1)
            if len(self) > 1
            else np.full(len(self.names), math.nan)
        )
        rows = {
            name: {"mean": float(mean), "spread": float(sd), "noise": self.noise[name]}
            for name, mean, sd in zip(self.names, self.columns.mean(axis=0), spread)
        }
        return {
            "images": len(self),
            "repeats": self.estimates.shape[1],
            "times_per_image": self.times_per_image,
            "seed": self.seed,
            "bits_per_dim": rows,
        }

    def _columns(self, per_scale: np.ndarray) -> np.ndarray:
        total = per_scale.sum(axis=-1, keepdims=True)
        return np.concatenate([per_scale, total], axis=-1) if len(self.scales) > 1 else total


def image_scores(
    cascade: Cascade,
    images: Tensor,
    *,
    repeats: int = 4,
    times_per_image: int = 4,
    seed: int = 0,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Scores:
    """Code lengths of integer images (N, *cascade.image_shape), each from repeats * times_per_image
    network evaluations a scale.

    Sets to be compared want the same number of evaluations, since the noise of an estimate is a
    deviation too, and each a seed of its own, or the k-th images of two sets get the same noise.

    Args:
        cascade: the model; it is in evaluation mode meanwhile.
        images: integers (N, *cascade.image_shape).
        repeats: independent estimates.
        times_per_image: network evaluations an image, scale and repeat.
        seed: of times and noise.
        batch_size: images at a time.
        device: where the cascade is.
        dtype: of the computation.
        progress: show a bar.

    Returns:
        Bits per dimension of every image and scale.

    Raises:
        ValueError: for images of another shape, range or number than `evaluate` takes.
        FloatingPointError: where the bound is not finite.
    """
    result = evaluate(
        cascade,
        images,
        repeats=repeats,
        times_per_image=times_per_image,
        seed=seed,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    digests = tuple(
        hashlib.sha256(image.tobytes()).hexdigest()[:16]
        for image in images.to(torch.int32).cpu().numpy()
    )
    return Scores(result.parts.sum(axis=3), result.scales, times_per_image, seed, digests)


# Scores of batches; in all of them high means unlike the data


def batch_means(scores: np.ndarray, batch: int = 1, seed: int = 0) -> np.ndarray:
    """Means of batches of M images drawn without overlap, (n, ...) -> (n // M, ...): an order of
    the images by the seed, cut up; the n % M last images are left out.

    Args:
        scores: (n, ...).
        batch: M.
        seed: of the order.

    Returns:
        (n // M, ...).
    """
    _check_array(scores, "scores")
    if not 1 <= batch <= len(scores):
        raise ValueError(
            f"a batch of M={batch} images cannot be drawn from {len(scores)}: choose 1 <= M <= "
            f"{len(scores)}"
        )
    if batch == 1:
        return np.asarray(scores, np.float64)
    order = np.random.default_rng(seed).permutation(len(scores))[: len(scores) // batch * batch]
    return (
        np.asarray(scores, np.float64)[order].reshape(-1, batch, *np.shape(scores)[1:]).mean(axis=1)
    )


def typicality(
    scores: np.ndarray, reference: np.ndarray, batch: int = 1, seed: int = 0
) -> np.ndarray:
    """| mean code length of a batch of M - mean code length of the reference |, in the unit of the
    scores.

    Source: Sect. 6.2 of the paper, where M = 1.

    Args:
        scores: (n,) code lengths of the tested images, or (n, S), scale by scale.
        reference: (N,) or (N, S), of other images of the model's data.
        batch: M.
        seed: the choice of the batches; see `batch_means`.

    Returns:
        (n // M,) or (n // M, S).
    """
    _check_pair(scores, reference)
    return np.abs(batch_means(scores, batch, seed) - np.mean(reference, axis=0))


def combined_typicality(
    scores: np.ndarray, reference: np.ndarray, how: str = "max", batch: int = 1, seed: int = 0
) -> np.ndarray:
    """Typicality over all scales, (n, S) -> (n // M,): the deviation of every scale in standard
    deviations of the N reference images there, of which the largest ("max") or the sum ("sum") is
    taken. One scale may be long where another is short, which their total does not see.

    Args:
        scores: (n, S) code lengths of the tested images.
        reference: (N, S), of other images of the model's data.
        how: "max" or "sum".
        batch: M.
        seed: the choice of the batches; see `batch_means`.

    Returns:
        (n // M,), in standard deviations.
    """
    if how not in ("max", "sum"):
        raise ValueError(f"how={how!r}: expected 'max' or 'sum'")
    _check_pair(scores, reference)
    if np.ndim(scores) != 2:
        raise ValueError(
            f"the combination needs code lengths scale by scale, (n, S), got {np.shape(scores)}: "
            f"pass Scores.per_scale"
        )
    spread = (
        np.std(reference, axis=0, ddof=1)
        if len(reference) > 1
        else np.zeros(np.shape(reference)[1])
    )
    if not (spread > 0).all():
        raise ValueError(
            f"the {len(reference)} reference images have no spread on some scale: standardising "
            f"needs at least two different ones"
        )
    deviations = typicality(scores, reference, batch, seed) / spread
    return deviations.max(axis=1) if how == "max" else deviations.sum(axis=1)


# The area under the ROC curve


class Auroc(NamedTuple):
    """Area under the ROC curve: the probability that an outlier scores higher than an image (or
    batch) of the data, ties counted half; with the bootstrap interval of that confidence from
    `draws` resamplings of the n_in and the n_out scores."""

    value: float
    low: float
    high: float
    n_in: int
    n_out: int
    draws: int
    confidence: float


def auroc(
    in_scores: np.ndarray,
    out_scores: np.ndarray,
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Auroc:
    """AUROC of scores (n_in,) of the data and (n_out,) of outliers, high for outliers, with a
    percentile interval.

    Both sets are resampled, so the interval is for the populations that they are independent draws
    from. Where they do not overlap it is [1, 1] whatever their size: it knows nothing of overlaps
    too rare for these sets.

    Args:
        in_scores: (n_in,), of the data.
        out_scores: (n_out,), of outliers.
        draws: resampled sets for the interval.
        confidence: of the interval, 0.95 for 95 %.
        seed: of the draws.

    Returns:
        The AUROC and its interval.

    Raises:
        ValueError: for scores that are empty, not finite or not one-dimensional, and for settings
            out of range.
    """
    inside, outside = (
        _check_array(in_scores, "in_scores", 1),
        _check_array(out_scores, "out_scores", 1),
    )
    _check_bootstrap(draws, confidence)
    truth = np.repeat([0, 1], [len(inside), len(outside)])
    value = float(need("sklearn.metrics").roc_auc_score(truth, np.concatenate([inside, outside])))
    rng = np.random.default_rng(seed)
    levels = _levels(inside, outside)
    low, high = _interval([_resampled(*levels, rng) for _ in range(draws)], confidence)
    return Auroc(value, low, high, len(inside), len(outside), draws, confidence)


def _levels(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores as places in the order of all values, equal ones in the same place, and the number of
    places."""
    values, places = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    return places[: len(inside)], places[len(inside) :], len(values)


def _resampled(
    inside: np.ndarray, outside: np.ndarray, count: int, rng: np.random.Generator
) -> float:
    """AUROC of one resampling of both sets, given as `_levels` gives them."""
    n, m = len(inside), len(outside)
    counts_in = np.bincount(inside[rng.integers(n, size=n)], minlength=count)
    counts_out = np.bincount(outside[rng.integers(m, size=m)], minlength=count)
    return float(counts_out @ (np.cumsum(counts_in) - counts_in / 2) / (n * m))


def _interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def statistics(scales: Sequence[str]) -> list[tuple[str, str]]:
    """(statistic, scale) of every row that `detect` makes for a model of these scales."""
    names = [*scales, TOTAL] if len(scales) > 1 else [TOTAL]
    combined = [MAX, SUM] if len(scales) > 1 else []
    return [("likelihood", name) for name in names] + [
        ("typicality", name) for name in (*names, *combined)
    ]


def detect(
    inside: Scores,
    reference: Scores,
    outliers: Mapping[str, Scores],
    *,
    batches: Sequence[int] = (1,),
    references: Sequence[int | None] = (20, None),
    over_reference: bool = False,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How well each outlier set is told from the model's own data, by every statistic.

    Args:
        inside: scores of the tested images from the data.
        reference: of other images of the data.
        outliers: scores of the other tested images, by the name of the set.
        batches: the M to try.
        references: the N to try, None for all; the first N in an order of the reference by the seed
            are taken.
        over_reference: add an interval that counts the choice of the N reference images too.
        draws: resampled sets for the intervals.
        confidence: of the intervals, 0.95 for 95 %.
        seed: of the batches, the reference and the draws.

    Returns:
        Rows of figures that JSON can hold, one for every set, statistic, scale, M and N:
        "set", "statistic" ("likelihood": the code length itself; "typicality"), "scale" (one of
        them; "total"; "max of scales" and "sum of scales", see `combined_typicality`), "M", "N"
        (None where no reference is used), "auroc" with "low" and "high" (see `auroc`), and the
        numbers of batches "n_in" and "n_out". With over_reference also "reference_mean",
        "reference_low" and "reference_high" (None for the likelihood): mean and interval over draws
        that resample both tested sets and draw N reference images, with replacement, from all.

    Raises:
        ValueError: for sets of different models or numbers of evaluations, a tested image that is
            in the reference, code lengths that are not
            finite, and M or N out of range: each set must give at least two batches, and the spread
                over the reference needs two images.
    """
    _check_sets(inside, reference, outliers)
    _check_bootstrap(draws, confidence)
    smallest = min(len(s) for s in (inside, *outliers.values()))
    for batch in batches:
        if not 1 <= batch <= smallest // 2:
            raise ValueError(
                f"M={batch}: the smallest set has {smallest} images and has to give two batches, "
                f"so choose 1 <= M <= {smallest // 2}"
            )
    sizes = [len(reference) if size is None else size for size in references]
    for n in sizes:
        if not 2 <= n <= len(reference):
            raise ValueError(
                f"N={n}: there are {len(reference)} reference images, so choose 2 <= N <= "
                f"{len(reference)}, or None for all"
            )
    pool = reference.columns[np.random.default_rng(seed).permutation(len(reference))]
    rows = []
    for name, outside in outliers.items():
        for batch in batches:
            means = [batch_means(s.columns, batch, seed) for s in (inside, outside)]
            for statistic, scale in statistics(inside.scales):
                tried: list[int | None] = [*sizes] if statistic == "typicality" else [None]
                for size in tried:
                    found = auroc(
                        *(
                            _statistic(statistic, scale, m, pool[:size], inside.names)
                            for m in means
                        ),
                        draws=draws,
                        confidence=confidence,
                        seed=seed,
                    )
                    row: dict[str, Any] = {
                        "set": name,
                        "statistic": statistic,
                        "scale": scale,
                        "M": batch,
                        "N": size,
                        "auroc": found.value,
                        "low": found.low,
                        "high": found.high,
                        "n_in": found.n_in,
                        "n_out": found.n_out,
                    }
                    if over_reference:
                        figures: tuple[float | None, float | None, float | None]
                        figures = (None, None, None)
                        if size is not None:
                            values = _over_reference(
                                scale, means, pool, size, inside.names, draws, seed
                            )
                            figures = (float(np.mean(values)), *_interval(values, confidence))
                        row |= dict(
                            zip(("reference_mean", "reference_low", "reference_high"), figures)
                        )
                    rows.append(row)
    return rows


def _statistic(
    statistic: str, scale: str, means: np.ndarray, reference: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """One score a batch from its mean code lengths (k, len(names)) and those of the reference
    images (N, len(names))."""
    if scale in (MAX, SUM):
        return combined_typicality(
            means[:, :-1], reference[:, :-1], "max" if scale == MAX else "sum"
        )
    column = list(names).index(scale)
    return (
        means[:, column]
        if statistic == "likelihood"
        else typicality(means[:, column], reference[:, column])
    )


def _over_reference(
    scale: str,
    means: Sequence[np.ndarray],
    pool: np.ndarray,
    size: int,
    names: Sequence[str],
    draws: int,
    seed: int,
) -> list[float]:
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        reference = pool[rng.integers(len(pool), size=size)]
        # one image drawn N times has no spread to divide by
        while scale in (MAX, SUM) and not np.ptp(reference[:, :-1], axis=0).all():
            reference = pool[rng.integers(len(pool), size=size)]
        values.append(
            _resampled(
                *_levels(*(_statistic("typicality", scale, m, reference, names) for m in means)),
                rng,
            )
        )
    return values


# Checks


def _check_array(values: np.ndarray, name: str, ndim: int | None = None) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim not in ((1, 2) if ndim is None else (ndim,)) or array.size == 0:
        raise ValueError(
            f"{name} has the shape {array.shape}, expected "
            f"{'(n,) or (n, S)' if ndim is None else '(n,)'} with n >= 1"
        )
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} values of {array.size} that are NaN or infinite: leave those "
            f"images out, or score them again"
        )
    return array


def _check_pair(scores: np.ndarray, reference: np.ndarray) -> None:
    tested, known = _check_array(scores, "scores"), _check_array(reference, "reference")
    if tested.shape[1:] != known.shape[1:]:
        raise ValueError(
            f"scores {tested.shape} and reference {known.shape} need the same scales: take both "
            f"from one model, or both as totals"
        )


def _check_bootstrap(draws: int, confidence: float) -> None:
    if draws < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"need draws >= 1 and 0 < confidence < 1, got draws={draws} and confidence={confidence}"
        )


def _check_sets(inside: Scores, reference: Scores, outliers: Mapping[str, Scores]) -> None:
    if not outliers:
        raise ValueError("no outlier sets: give at least one, as {name: scores}")
    known = set(reference.digests)
    for name, scores in {
        "inside": inside,
        "reference": reference,
        **{f"outliers[{k!r}]": v for k, v in outliers.items()},
    }.items():
        _check_array(scores.columns, name)
        mine, theirs = (
            (s.scales, s.estimates.shape[1] * s.times_per_image) for s in (scores, inside)
        )
        if mine != theirs:
            raise ValueError(
                f"{name} was scored on scales {mine[0]} with {mine[1]} evaluations each, inside "
                f"on {theirs[0]} with {theirs[1]}: "
                "score all sets with one model and as many evaluations"
            )
        shared = 0 if name == "reference" else sum(digest in known for digest in scores.digests)
        if shared:
            raise ValueError(
                f"{shared} of the {len(scores)} images of {name} are reference images too: the "
                f"entropy has to come from other images, "
                "so split them (Scores.part)"
            )
