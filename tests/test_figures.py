"""Every figure, drawn from small data, keeps to the rules: text of 9 points or more, no legend on
data, nothing cut off or printed over something else, a title and names of axes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from figure_rules import faults
from matplotlib.figure import Figure

from pcdm_lib import figures, load_pretrained
from pcdm_lib.experiments.studies.accounting import exact_ledger
from pcdm_lib.likelihood.enumerable import example_source
from pcdm_lib.likelihood.evaluation import TERMS, Evaluation
from pcdm_lib.likelihood.information import InformationMap
from pcdm_lib.maps import HaarWavelet, LaplacianPyramid
from pcdm_lib.transport.bound import TransportBound
from pcdm_lib.transport.exact import Plan

matplotlib.use("Agg")
RANDOM = np.random.default_rng(0)
LABEL = (
    "600 held-out images of a data set with a rather long name, 64x64, colour; seed 0, 4 repeats"
)
MOVES = list(
    zip(
        ["start", "pop", "push", "push", "pop", "push", "pop", "push", "push", "pop", "push"],
        [100, 60, 61, 62, 20, 63, 30, 70, 110, 90, 130],
    )
)


@pytest.fixture(autouse=True)
def styled() -> Iterator[None]:
    with matplotlib.rc_context():
        figures.use_style()
        yield
    plt.close("all")


def photos(count: int, side: int = 16) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=rng, dtype=torch.uint8)


def evaluation(scales: tuple[str, ...] = ("base", "details1"), level: float = 1.0) -> Evaluation:
    share = np.array([0.01, level, 0.04]) / len(TERMS)
    parts = share * RANDOM.uniform(2, 3, (8, 2, len(scales), 3))
    return Evaluation(parts, scales, None, "stratified", "EMA", 0)


def training_rows(scales: int, **more: object) -> list[dict]:
    names = ["base", *(f"details{k}" for k in range(1, scales))]
    rows = []
    for k in range(1, 60):
        shares = {name: 1.5 + 4 / k + 0.1 * np.sin(7 * k + i) for i, name in enumerate(names)}
        rows.append({"seconds": 5.0 * k, "bpd": sum(shares.values()), "scales": shares} | more)
    return rows


def plan() -> tuple[np.ndarray, Plan]:
    f = RANDOM.normal(size=(8, 8))
    at = [np.array([1, 4]), np.array([2, 5]), np.array([6, 0]), np.array([3, 7])]
    one = np.zeros((8, 8))
    one[2, 2] = 1.0
    return f, Plan(*at, np.array([0.5, 1.0]), one, one.T * 0.5)


def bound(size: float) -> TransportBound:
    norms = size * RANDOM.uniform(1, 2, (3, 4, 3))
    squares = (norms**2).sum(axis=0)
    exact = np.sqrt(squares) * RANDOM.uniform(2, 3, squares.shape)
    return TransportBound(norms, squares, exact, exact * 5, norms.sum(axis=0) * 8, 16.0)


GAMMAS = (-10.0, -6.0, -2.0, 2.0)


def image_rows() -> Figure:
    return figures.images.image_rows({"train": photos(9), "held out": photos(4)}, LABEL)


def image_fill() -> Figure:
    names = [f"{k}x{k}\n768 of 768 integers" for k in range(5)]
    return figures.images.image_rows(photos(5), "Stops", names, side=1.9, per_row=3)


def haar_step() -> Figure:
    return figures.maps.haar_step(torch.tensor([100, 90, 13, 10]))


def scales(kind: type, draw: Callable) -> Figure:
    x = photos(1, 64).double() / 127.5 - 1
    return draw(kind(3).analyse(x), "Three levels: details are nearly 0 except at edges and in fur")


def matrices() -> Figure:
    eye = torch.eye(16)
    return figures.maps.matrices(
        {"wavelet": eye, "pyramid": torch.cat([eye, eye[:4]]), "subsampling": eye}, "Jacobians"
    )


def progressions() -> Figure:
    lines = {band: (np.arange(-5.0, 5.0), 1.0) for band in "spqr"}
    return figures.maps.progressions(lines, "Grids of one block, and its own values")


def samples() -> Figure:
    model = load_pretrained("photos32-wavelet")
    drawn = model.sample(3, steps=2, generator=torch.Generator().manual_seed(0))
    return figures.runs.sample_growth(model, drawn, LABEL)


def likelihood_rows() -> Figure:
    rows = [
        {
            "name": n,
            "bpd": 3.5,
            "minus_continuous": d,
            "minus_se": 0.01,
            "evaluations": e,
            "images": 8,
        }
        for n, d, e in (("continuous", 0, 8), ("T = 100", 0.2, 100), ("flow", 0.01, 56.4))
    ]
    return figures.runs.likelihood_differences(rows, LABEL)


def found_bits() -> InformationMap:
    hierarchy = HaarWavelet(1)
    specs = hierarchy.specs((3, 16, 16))
    nats = tuple(torch.rand(4, *spec.shape, dtype=torch.float64) * 4 for spec in specs)
    return InformationMap(tuple(specs), nats, (3, 16, 16))


def symbol_probabilities() -> Figure:
    pmfs = {name: np.full(9, 1 / 9) for name in ("all alike", "neighbours known", "the network")}
    title = "The same coefficient, three codes: a good guess makes it cheap"
    return figures.information.symbol_probabilities(range(0, 18, 2), pmfs, 6, title)


def message_sizes() -> Figure:
    codecs = {"PNG": 20000.0, "JPEG XL": 17000.0}
    return figures.information.message_sizes(
        {"base": 4000.0, "details1": 9000.0}, codecs, 24576.0, "Your image, in bytes", LABEL
    )


def unusual_images() -> Figure:
    groups = {name: RANDOM.uniform(2, 6, 30) for name in ("photographs", "noise", "black")}
    return figures.information.unusual_images(groups, dict(zip(groups, photos(3))), 4.5, LABEL)


SOURCE = example_source()
TITLE = "One honest count and three that are not: both slips together, 0.85 bits per dimension"
CELLS = {"base: diffusion": 0.8, "details: diffusion": 0.6, "decoder and prior": 0.16}


def source_images() -> Figure:
    bits = -SOURCE.log_prob / np.log(2)
    return figures.likelihood.source_images(SOURCE.images, bits, 4, TITLE, LABEL)


def areas() -> Figure:
    gammas = np.linspace(-8, 6, 50)
    hill = {n: np.exp(-((gammas - c) ** 2) / 8) for n, c in (("one scale", 0), ("wavelet", -1))}
    return figures.likelihood.areas(gammas, hill, hill, -5.0, 2 / 3, TITLE, LABEL)


def counts() -> Figure:
    rows = {
        "valid": CELLS,
        "4. coarse scale clean,\ndecoder noisy": CELLS | {"base: diffusion": 0.2},
    }
    return figures.likelihood.counts(
        rows, 1.55, {n: 1.0 + k for k, n in enumerate(rows)}, TITLE, LABEL
    )


def estimates() -> Figure:
    rows = {"one scale": (1.5500, 0.001), "wavelet": (1.552, 0.002), "pyramid": (1.553, 0.001)}
    groups = {"exact ledger": rows, "library, noise levels drawn": {"wavelet": (1.551, 0.001)}}
    return figures.likelihood.estimates(
        groups, 1.5485, "entropy", "bits per dimension", TITLE, LABEL
    )


@functools.cache
def leaks() -> tuple[list[float], list]:
    ratios = [0.03, 0.3, 3.0]
    return ratios, [exact_ledger(SOURCE, sigma_ratio=r, draws=4, repeats=2) for r in ratios]


def leak_curves() -> Figure:
    return figures.likelihood.leak_curves(*leaks(), 0.166, LABEL)


def slider_view() -> Figure:
    ratios, ledgers = leaks()
    return figures.likelihood.slider_view(ratios, ledgers, 0.3, ledgers[1])


def model_counts() -> Figure:
    names = ("valid", "coarse clean", "LL/2", "both")
    counted = {name: evaluation(level=1.2 - 0.2 * k) for k, name in enumerate(names)}
    return figures.likelihood.model_counts(counted, TITLE, LABEL)


def leak_law() -> Figure:
    ratios = np.geomspace(0.03, 1.2, 20)
    laws = {f"{n} levels": 0.1 * n * np.exp(-((np.log(ratios) + 1.5) ** 2)) for n in (1, 2, 3)}
    measured = {(n, r): (0.1 * n, 0.005) for n in (1, 2) for r in (0.05, 0.2, 0.8)}
    return figures.likelihood.leak_law(ratios, laws, measured, 0.166, TITLE, LABEL)


FLOATS = ("bfloat16", "float16", "float32", "float64")


def exact_levels() -> Figure:
    wrong = {name: [0.0, 20.0 * k, 99.0] for k, name in enumerate(FLOATS)}
    return figures.likelihood.exact_levels([1, 2, 3], wrong, dict.fromkeys(FLOATS, 2), TITLE, LABEL)


def float_errors() -> Figure:
    grey = {name: [10.0**-k, 1.5 * 10.0**-k, 2 * 10.0**-k] for k, name in enumerate(FLOATS)}
    units = {name: [0.5, 0.7, 0.9] for name in FLOATS}
    return figures.likelihood.float_errors([1, 2, 3], grey, units, TITLE, LABEL)


def curves(count: int) -> Figure:
    x = np.arange(1.0, 9.0)
    names = [f"$\\theta_2/\\theta_1$ = {k}: length {k**0.5:.1f}" for k in range(count)]
    return figures.transport.curves(
        x,
        {n: x * (k + 1) for k, n in enumerate(names)},
        "price of a unit, pixels",
        "distance",
        "Linear in the price, until everything is created anew",
        marks={"half": 4.0},
    )


def distance_ratios() -> Figure:
    families = {n: RANDOM.uniform(5, 40, 20) for n in ("noise", "photographs", "errors of scores")}
    found = {"Haar": families, "DB3": families, "sym5": families}
    return figures.transport.distance_ratios(found, "The ratio is between 4 and 50", LABEL)


def crossings() -> Figure:
    places = range(31)
    lines = {name: RANDOM.uniform(5, 40, 31) for name in ("Haar", "DB3", "sym5")}
    return figures.transport.crossings(places, {"a pixel": lines, "an edge": lines}, 32, TITLE)


def norms_and_bounds() -> Figure:
    found = [bound(10.0**-k) for k in range(4)]
    names = ("base", "details1", "details2")
    return figures.transport.norms_and_bounds(GAMMAS, found, names, np.array([8.0, 4, 2]), LABEL)


def bound_shapes() -> Figure:
    shrunk = np.geomspace(1e-2, 1, 5), np.geomspace(0.1, 3, 5)
    return figures.transport.bound_shapes(
        GAMMAS, [bound(10.0**-k) for k in range(4)], shrunk, LABEL
    )


def denoising_error() -> Figure:
    x, parts = photos(2, 32), {n: RANDOM.normal(size=(32, 32)) for n in ("base", "details1")}
    error = sum(parts.values())
    return figures.transport.denoising_error(x[0], x[1] / 255, error, parts, bound(100), -4.0)


def times() -> Figure:
    ways = {
        n: ([8, 16, 32, 64], [0.01 * 4**k for k in range(4)], 1.2) for n in ("exact", "wavelet")
    }
    return figures.transport.times(ways, "Exact distances are for small images")


def fields() -> Figure:
    panels = {f"$\\theta$ = (0.0{k}, 1)": RANDOM.normal(size=(16, 16)) for k in range(5)}
    return figures.transport.fields(panels, "Draws of the family, from rough to smooth")


SIZES = (64, 256, 1024)


def squared_errors() -> dict:
    squared = RANDOM.uniform(1, 3, (3, 20)) / np.array(SIZES)[:, None]
    names = ("maximum likelihood", "score matching, transport weights", "score matching, plain")
    return {name: (squared * (k + 1), 2.0 * (k + 1)) for k, name in enumerate(names)}


def errors_by_size() -> Figure:
    return figures.transport.errors_by_size(SIZES, squared_errors(), TITLE, "error", LABEL)


def efficiencies() -> Figure:
    ratios = np.concatenate([np.linspace(-0.1, 0.3, 9), np.geomspace(0.32, 100, 9)])
    names = ("A = true covariance", "transport, price = half the side", "plain")
    lines = {name: np.full(len(ratios), 1 - 0.3 * k) for k, name in enumerate(names)}
    measured = {names[0]: {0.0: (1.0, 0.1), 5.0: (0.95, 0.1)}}
    return figures.transport.efficiencies(ratios, lines, measured, TITLE, LABEL)


def skewed_law() -> Figure:
    grid = np.linspace(-4, 4, 99)
    hill = np.exp(-(grid**2))
    bias = np.array([0.05, 0.2, 0.8]), np.array([0.001, 0.02, 0.2]), 0.4
    marks = {"mean": 0.2, "median": -0.1}
    return figures.transport.skewed_law(
        grid, hill, hill[::-1] * 2, marks, SIZES, squared_errors(), bias, LABEL
    )


def denoising_efficiencies() -> Figure:
    lines = {n: [0.3 - 0.02 * k, 0.2, 0.1] for k, n in enumerate(("plain", "wavelet", "exact"))}
    panels = {"one draw of noise an image": lines, "noise averaged out": lines}
    measured = {name: {"plain": (0.5, 0.2, 0.02)} for name in panels}
    return figures.transport.denoising_efficiencies((0.1, 0.5, 0.9), panels, measured, TITLE, LABEL)


def symbol_costs() -> Figure:
    labels = ["draw $z$", "push $x$", "push $z$"]
    moves = {f"$z$ = {z}": (labels, [-1.5, 2.0 + z, 1.0]) for z in (0, 1)}
    costs = {"bits back": [1.0, 2.0, 3.0], "without": [2.0, 3.0, 4.0], "entropy": [1.0, 1.9, 2.9]}
    return figures.coding.symbol_costs(moves, costs, "Two latents, two ways, one height at the end")


def growth() -> Figure:
    heights = {n: np.arange(60.0) * (k + 1) for k, n in enumerate(("bits back", "without"))}
    return figures.coding.growth(MOVES, heights, 1.9, "Two steps up, one down")


def chain() -> Figure:
    return figures.coding.chain(MOVES, {"details1": 9, "base": 11}, 10, title=TITLE)


def dirty_bits() -> Figure:
    variance = {"scrambled": np.ones(20), "not scrambled": np.linspace(1, 1.6, 20)}
    return figures.coding.dirty_bits(
        variance, {"scrambled": 2.0, "not scrambled": 2.2}, 2.0, "Noise"
    )


def grid_costs() -> Figure:
    cost = RANDOM.normal(size=(3, 4)) * 0.1
    steps = [0.1, 0.35, 1.0]
    return figures.coding.grid_costs(
        steps, cost, [9.0, 7.0, 5.0], [0.1, 0.2, 0.5], cost, [0.0, 0.05, 0.1], (0.5, 0.1), TITLE
    )


def last_bits() -> Figure:
    off = {"float32": RANDOM.normal(size=900) * 1e-7, "float64": RANDOM.normal(size=900) * 1e-15}
    counts, expected = {"float32": 3, "float64": 0}, {"float32": 40.0, "float64": 1e-9}
    return figures.coding.last_bits(off, counts, expected, 2.0**-6, np.arange(300) % 7, TITLE)


def file_parts() -> Figure:
    rest = {"start of the stack": 2000.0, "plain files": 900.0, "container": 400.0}
    model = {"details1": 40000.0, "base": 20000.0}
    files = {"the model alone,\n40 steps": model | rest, "plain codecs\nallowed": rest}
    return figures.coding.file_parts(files, 98304.0, [*model], "Four photographs in one file")


def bits_by_step() -> Figure:
    steps = {"details1": RANDOM.uniform(0.1, 0.2, 42), "base": RANDOM.uniform(0.1, 0.2, 42)}
    return figures.coding.bits_by_step(steps, "Step by step")


def overhead() -> Figure:
    numbers = np.arange(1, 1001)
    share = {"start of the stack": 90 / numbers + 0.4, "container": 10 / numbers + 0.5}
    return figures.coding.overhead(numbers, share, (4, 26.0), 2, 91, "What is not image fades")


def noise_law() -> Figure:
    pmf = np.exp(-((np.arange(256) - 120) ** 2) / 900)
    images = RANDOM.choice(256, 4096, p=pmf / pmf.sum())
    bits = {"model, not trained": (6.9, 0.02), "JPEG XL": (7.4, 0.02), "PNG": (8.2, 0.02)}
    return figures.domains.noise_law(images, pmf / pmf.sum(), 6.4, bits, TITLE, LABEL)


def domain_bits() -> Figure:
    names = ("photographs", "spectrograms", "tissue")
    codecs = {"each value by itself": (5.65, 0.1), "PNG": (5.6, 0.1), "JPEG XL": (4.3, 0.1)}
    results = {name: evaluation(level=2.0) for name in names}
    return figures.domains.domain_bits(results, dict.fromkeys(names, codecs), TITLE, LABEL)


def coarse_worth() -> Figure:
    rows = {
        n: {"its own": (3.0, 0.1), "none": (3.02, 0.1), "another's": (9.6, 0.2)} for n in "abcd"
    }
    more = {n: {k: v for k, v in row.items() if k != "its own"} for n, row in rows.items()}
    return figures.domains.coarse_worth(rows, more, TITLE, LABEL)


def band_shares() -> Figure:
    names = ("photographs", "spectrograms", "tissue", "noise")
    energy = {n: {"s": 90.0, "p": 6.0, "q": 3.5, "r": 0.5} for n in names}
    colours = {"photographs": (97.0, 2.2, 0.3), "tissue": (92.0, 7.0, 1.0)}
    return figures.domains.band_shares(energy, colours, "Where the energy is")


def aliased_tone() -> Figure:
    return figures.domains.aliased_tone(
        photos(1, 32)[0, :1], torch.rand(1, 16, 16), 375.0, "A tone"
    )


def bound_figures() -> dict[str, Callable[[], Figure]]:
    """Those of the bound of one image, by their names."""
    draw, z = figures.bound, torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    gammas = torch.linspace(-13, 5, 41)
    names = ("knows the variance", "untrained", "trained")
    errors = {n: (gammas, torch.sigmoid(gammas) ** (k + 1)) for k, n in enumerate(names)}
    terms = {"prior": 1e-4, "diffusion": 1.54, "reconstruction": 0.006}
    table = {"base": terms, "details1": terms, "total": terms}
    lengths = torch.linspace(4, 31, 20)
    short = "Two scales cost what one does"
    at = [-11.0, -8.5, -6.0, -3.5, -1.0, 1.5, 4.0]
    few = photos(10, 8)
    return {
        "bound.idea": lambda: draw.idea(photos(1, 32)[0]),
        "bound.forward_process": lambda: draw.forward_process(z[:6], z[0], at[:6], 4, TITLE, LABEL),
        "bound.denoiser_at_work": lambda: draw.denoiser_at_work(
            at, z[:7], z[:7], errors, TITLE, LABEL
        ),
        "bound.three_terms": lambda: draw.three_terms(
            terms, 1.55, lengths, lengths + 1, TITLE, LABEL
        ),
        "bound.loss_areas": lambda: draw.loss_areas(
            {"256 images of 2x2": errors, "photographs of 8x8": errors}, TITLE, LABEL
        ),
        "bound.term_bars": lambda: draw.term_bars(
            {"untrained": table, "trained": table}, {"PNG": 5.1, "JPEG XL": 4.0}, short, LABEL
        ),
        "bound.sampling_path": lambda: draw.sampling_path(
            np.linspace(1, 0, 10), z, z, few, few, TITLE, LABEL
        ),
    }


DRAWN: dict[str, Callable[[], Figure]] = {
    "images.image_rows": image_rows,
    "images.image_rows, filled": image_fill,
    "direct.phases": lambda: figures.direct.phases(),
    "direct.conditionals": lambda: figures.direct.conditionals(
        {f"{band} of green": ([-4, -2, 0, 2, 4], [0.1, 0.2, 0.4, 0.2, 0.1], 2) for band in "pqr"}
    ),
    "maps.haar_step": haar_step,
    "maps.wavelet_scales": lambda: scales(HaarWavelet, figures.maps.wavelet_scales),
    "maps.pyramid_scales": lambda: scales(LaplacianPyramid, figures.maps.pyramid_scales),
    "maps.matrices": matrices,
    "maps.progressions": progressions,
    "runs.training_curve": lambda: figures.runs.training_curve(training_rows(3), LABEL, 3.9),
    "runs.training_curve, one scale": lambda: figures.runs.training_curve(training_rows(1), LABEL),
    "runs.training_curve, one row": lambda: figures.runs.training_curve(
        training_rows(2)[:1], LABEL, 3.9
    ),
    "runs.training_curve, weighted": lambda: figures.runs.training_curve(
        training_rows(2, weighting="edm"), LABEL
    ),
    "runs.bits_by_term": lambda: figures.runs.bits_by_term(
        evaluation(), {"PNG": (5.5, 0.1), "WebP": (4.8, 0.1)}, LABEL, "W-PCDM"
    ),
    "runs.sample_growth": samples,
    "runs.likelihood_differences": likelihood_rows,
    "information.symbol_probabilities": symbol_probabilities,
    "information.bit_map": lambda: figures.information.bit_map(
        photos(1)[0], found_bits(), "Where the bits of this patch are", label=LABEL
    ),
    "information.bit_maps": lambda: figures.information.bit_maps(
        photos(4), found_bits(), "Cheap and expensive patches", LABEL
    ),
    "information.message_sizes": message_sizes,
    "information.unusual_images": unusual_images,
    "likelihood.source_images": source_images,
    "likelihood.areas": areas,
    "likelihood.counts": counts,
    "likelihood.estimates": estimates,
    "likelihood.leak_curves": leak_curves,
    "likelihood.slider_view": slider_view,
    "likelihood.model_counts": model_counts,
    "likelihood.leak_law": leak_law,
    "likelihood.exact_levels": exact_levels,
    "likelihood.float_errors": float_errors,
    "transport.transport_plans": lambda: figures.transport.transport_plans(
        {"without a price": plan(), "with one": plan()}, "Purple has too much, orange too little"
    ),
    "transport.curves": lambda: curves(2),
    "transport.curves, many": lambda: curves(6),
    "transport.distance_ratios": distance_ratios,
    "transport.crossings": crossings,
    "transport.norms_and_bounds": norms_and_bounds,
    "transport.bound_shapes": bound_shapes,
    "transport.denoising_error": denoising_error,
    "transport.times": times,
    "transport.fields": fields,
    "transport.errors_by_size": errors_by_size,
    "transport.efficiencies": efficiencies,
    "transport.skewed_law": skewed_law,
    "transport.denoising_efficiencies": denoising_efficiencies,
    "coding.symbol_costs": symbol_costs,
    "coding.growth": growth,
    "coding.chain": chain,
    "coding.dirty_bits": dirty_bits,
    "coding.grid_costs": grid_costs,
    "coding.last_bits": last_bits,
    "coding.file_parts": file_parts,
    "coding.bits_by_step": bits_by_step,
    "coding.overhead": overhead,
    "domains.noise_law": noise_law,
    "domains.domain_bits": domain_bits,
    "domains.coarse_worth": coarse_worth,
    "domains.band_shares": band_shares,
    "domains.aliased_tone": aliased_tone,
}
if "bound" in figures.MODULES:
    DRAWN |= bound_figures()
# drawn from runs and files by the tests of these, and put to the same rules there
ELSEWHERE = {
    "tables.learning_curves",
    "tables.bits_by_scale",
    "typicality.code_length_histograms",
    "typicality.auroc_by_scale",
    "typicality.auroc_by_draws",
    "coding.file_sizes",
    "coding.file_contents",
}


def test_every_figure_is_drawn_here_or_elsewhere() -> None:
    """A new figure without a test is noticed."""
    public = set()
    for name in figures.MODULES:
        for function, found in inspect.getmembers(getattr(figures, name), inspect.isfunction):
            own = found.__module__ == f"pcdm_lib.figures.{name}" and not function.startswith("_")
            if own and name != "style" and inspect.signature(found).return_annotation == "Figure":
                public.add(f"{name}.{function}")
    assert public == {name.split(",")[0] for name in DRAWN} | ELSEWHERE


@pytest.mark.parametrize("name", DRAWN)
def test_figure_keeps_the_rules(name: str) -> None:
    assert faults(DRAWN[name]()) == []


def test_the_rules_find_what_is_wrong() -> None:
    """Each rule on a figure that breaks it, so that none of them passes everything."""
    figure, ax = plt.subplots(figsize=(4, 3))
    ax.plot([0, 1], [0, 1], label="a curve")
    ax.legend(loc="center", fontsize=7)
    figure.text(0.9, 0.5, "text that runs out of the picture")
    ax.bar([0.2, 0.3], [0.5, 0.4], 0.02)
    ax.text(0.1, 0.1, "over two bars")
    ax.text(0.1, 0.12, "and over text")
    said = "; ".join(faults(figure))
    for words in (
        "has 7 points",
        "is cut off",
        "lie on each other",
        "lies on data",
        "printed over bars",
        "no title",
        "an axis without a name: x",
        "an axis without a name: y",
    ):
        assert words in said, words


def test_names_at_the_ends_of_curves_are_apart() -> None:
    ends = [(1.0, "a", "red"), (1.01, "b", "blue"), (1.02, "c", "black")]
    _, ax = plt.subplots()
    ax.set(ylim=(0, 6), xlabel="minutes", ylabel="bits")
    figures.style.end_labels(ax, ends)
    heights = [text.xy[1] for text in ax.texts]
    assert heights[0] == 1.0 and np.diff(heights).min() > 0.1


def test_one_way_to_ask_for_a_module() -> None:
    assert set(figures.MODULES) < set(dir(figures))
    with pytest.raises(AttributeError, match="no attribute 'plots'"):
        _ = figures.plots
