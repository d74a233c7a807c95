"""Out-of-distribution detection: the scores by hand, what the intervals mean, and what a shipped
model does with images that are no photographs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from figure_rules import faults
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import Tensor

import pcdm_lib
from pcdm_lib import data
from pcdm_lib.diffusion import LinearSchedule
from pcdm_lib.figures import typicality as typicality_figures
from pcdm_lib.likelihood import evaluate
from pcdm_lib.likelihood.typicality import (
    Scores,
    _areas,
    auroc,
    batch_means,
    combined_typicality,
    detect,
    draws_gains,
    image_scores,
    nested_strata,
    statistics,
    typicality,
)
from pcdm_lib.maps import HaarWavelet, Identity
from pcdm_lib.models import Cascade


def cascade(levels: int = 1) -> Cascade:
    def shrink(z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
        sigma2 = torch.sigmoid(gamma).reshape(-1, 1, 1, 1)
        return sigma2.sqrt() / (0.25 * (1 - sigma2) + sigma2) * z_t

    hierarchy = HaarWavelet(levels) if levels else Identity()
    return Cascade(hierarchy, (1, 4, 4), [shrink] * (levels + 1), LinearSchedule(-10.0, 4.0))


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randint(
        60, 200, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def made(
    values: np.ndarray,
    name: str = "x",
    scales: tuple[str, ...] = ("base", "details1"),
    draws: tuple[int, ...] = (1, 4),
    noise: float = 0.0,
) -> Scores:
    """Scores without images: the code lengths (n, S), with normal noise of that size on every draw,
    each image with a digest of its own."""
    values = np.asarray(values, float)
    rng = np.random.default_rng(len(values))
    estimates = values[:, None] + noise * rng.normal(size=(len(values), draws[-1], values.shape[1]))
    digests = tuple(f"{name}{i}" for i in range(len(values)))
    return Scores(estimates, scales, draws, "stratified", 0, digests)


def normal(
    n: int, seed: int, shift: tuple[float, float] = (0.0, 0.0), name: str = "x", **settings
) -> Scores:
    values = np.random.default_rng(seed).normal(size=(n, 2)) + np.add((2, 3), shift)
    return made(values, name, **settings)


def only(rows: list[dict], **wanted: object) -> dict:
    """The one row with those entries."""
    found = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    assert len(found) == 1, found
    return found[0]


# The scores


def test_typicality_by_hand() -> None:
    """H_hat of 2 and 4 is 3; deviations count in both directions; columns are scored one by one."""
    scores, reference = np.array([1.0, 2, 4, 7]), np.array([2.0, 4])
    assert typicality(scores, reference).tolist() == [2, 1, 1, 4]
    both = typicality(
        np.stack([scores, 10 * scores], axis=1), np.stack([reference, 10 * reference], axis=1)
    )
    assert both.tolist() == [[2, 20], [1, 10], [1, 10], [4, 40]]
    assert typicality(scores, reference, batch=4).tolist() == [0.5]


def test_combined_typicality_by_hand() -> None:
    """The reference's means are 1 and 2, its deviations sqrt(2) and 2 sqrt(2): the image is 1 and
    -2 of them off."""
    reference = np.array([[0.0, 0], [2, 4]])
    scores = np.array([[1 + math.sqrt(2), 2 - 4 * math.sqrt(2)]])
    assert combined_typicality(scores, reference) == pytest.approx([2])
    assert combined_typicality(scores, reference, "sum") == pytest.approx([3])


@pytest.mark.parametrize(("n", "batch"), [(12, 1), (12, 3), (13, 4), (5, 5), (7, 2)])
def test_batches_do_not_overlap(n: int, batch: int) -> None:
    """Scores that are powers of two: the bits of a batch's sum say which images it holds."""
    sums = (batch_means(2.0 ** np.arange(n), batch, seed=3) * batch).round().astype(int).tolist()
    assert len(sums) == n // batch and all(s.bit_count() == batch for s in sums)
    # no image twice, or a carry would have merged two bits
    assert sum(sums).bit_count() == batch * (n // batch)


def test_batches_are_drawn_by_the_seed() -> None:
    values = np.random.default_rng(0).normal(size=(40, 2))
    again = batch_means(values, 4, seed=1)
    assert np.array_equal(batch_means(values, 4, seed=1), again) and not np.array_equal(
        batch_means(values, 4, seed=2), again
    )
    assert np.array_equal(batch_means(values[:, 0], 4, seed=1), again[:, 0])


# The area under the curve


def test_auroc_by_hand() -> None:
    """Outlier 2 is above one of 1, 2, 3 and level with another, outlier 4 above all: 4.5 of 6
    pairs."""
    found = auroc(np.array([1, 2, 3]), np.array([2, 4]))
    assert (
        found.value == 0.75
        and found.low <= 0.75 <= found.high
        and (found.n_in, found.n_out) == (3, 2)
    )


def test_same_sets_and_same_distributions_give_a_half() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 300))
    assert auroc(x, x).value == pytest.approx(0.5) and auroc(np.ones(9), np.ones(5))[:3] == (
        0.5,
        0.5,
        0.5,
    )
    found = auroc(x, y)
    assert (
        abs(found.value - 0.5) < 3 * math.sqrt(601 / (12 * 300 * 300))
        and found.low < 0.5 < found.high
    )
    turned = auroc(y, x)
    assert turned.value == pytest.approx(1 - found.value)


def test_separated_sets() -> None:
    assert auroc(np.arange(20), np.arange(20, 50))[:3] == (1, 1, 1)
    assert auroc(np.arange(20, 50), np.arange(20))[:3] == (0, 0, 0)


def test_resampled_values_are_scikit_learns() -> None:
    """Each row is the AUROC of its scores, ties included."""
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(8, size=(20, 30)), rng.integers(3, 11, size=(20, 17))
    found = [roc_auc_score([0] * 30 + [1] * 17, [*x, *y]) for x, y in zip(inside, outside)]
    assert _areas(inside, outside) == pytest.approx(found)


def test_interval_covers() -> None:
    """Law: for Gaussians a shift d apart the AUROC is Phi(d / sqrt 2), and 95 % intervals hold it
    in 95 % of 300 trials, up to three standard errors of that share and the two per cent that a
    percentile interval lacks at 60 scores a side."""
    rng, shift, trials = np.random.default_rng(0), 0.8, 300
    truth, held, values = norm.cdf(shift / math.sqrt(2)), 0, []
    for trial in range(trials):
        found = auroc(rng.normal(size=60), rng.normal(size=60) + shift, resamplings=200, seed=trial)
        held += found.low <= truth <= found.high
        values.append(found.value)
    error = math.sqrt(0.95 * 0.05 / trials)
    assert 0.93 - 3 * error < held / trials < 0.95 + 3 * error
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(trials)


# Tables


KEYS = ["set", "statistic", "scale", "M", "N", "references", "auroc", "low", "high"]
KEYS += ["n_in", "n_out"]


def test_rows_are_what_the_parts_give() -> None:
    """Every row of a small table from `typicality`, `combined_typicality` and scikit-learn; the
    rows are JSON."""
    inside, reference, outside = (
        normal(30, 0, name="i", noise=0.5),
        normal(25, 1, name="r", draws=(3,), noise=0.5),
        normal(20, 2, (1.0, -0.5), "o", noise=0.5),
    )
    sets = (inside, reference, {"shifted": outside})
    rows = detect(*sets, batches=(1, 3), resamplings=20, seed=7)
    assert json.loads(json.dumps(rows)) == rows and all([*row] == KEYS for row in rows)
    assert len(rows) == 2 * 2 * (3 + 5) and statistics(("base",)) == [
        ("likelihood", "total"),
        ("typicality", "total"),
    ]
    known = reference.per_scale
    for row in rows:
        batch = {"batch": row["M"], "seed": 7}
        sides = [s.estimates[:, : row["N"]].mean(axis=1) for s in (inside, outside)]
        one = {
            "base": lambda v: v[:, 0],
            "details1": lambda v: v[:, 1],
            "total": lambda v: v.sum(axis=1),
        }.get(row["scale"])
        if row["statistic"] == "likelihood":
            tested = [batch_means(one(v), **batch) for v in sides]
        elif one:
            tested = [typicality(one(v), one(known), **batch) for v in sides]
        else:
            tested = [combined_typicality(v, known, row["scale"][:3], **batch) for v in sides]
        assert row["references"] == (None if row["statistic"] == "likelihood" else 25)
        assert (
            (row["n_in"], row["n_out"])
            == (30 // row["M"], 20 // row["M"])
            == tuple(map(len, tested))
        )
        assert row["auroc"] == pytest.approx(
            roc_auc_score(np.repeat([0, 1], [len(t) for t in tested]), np.concatenate(tested))
        )
        assert row["low"] <= row["auroc"] <= row["high"]
    assert detect(*sets, draws=(4,), resamplings=20, seed=7) == [
        row for row in rows if row["N"] == 4 and row["M"] == 1
    ]


def test_which_scale_sees_it() -> None:
    """Outliers whose base is shorter by as much as their details are longer: the total sees
    nothing, each scale and the combination does; and simpler outliers have a likelihood that is
    wrong in nearly every pair."""
    inside, reference = normal(200, 0, name="i"), normal(200, 1, name="r")
    outliers = {
        "traded": normal(200, 2, (-4.0, 4.0), "t"),
        "simpler": normal(200, 3, (-4.0, -4.0), "s"),
    }
    rows = detect(inside, reference, outliers, draws=(4,), resamplings=20)
    assert abs(only(rows, set="traded", statistic="typicality", scale="total")["auroc"] - 0.5) < 0.1
    for scale in ("base", "details1", "max of scales", "sum of scales"):
        assert only(rows, set="traded", statistic="typicality", scale=scale)["auroc"] > 0.97
    assert only(rows, set="simpler", statistic="likelihood", scale="total")["auroc"] < 0.01
    assert only(rows, set="simpler", statistic="typicality", scale="total")["auroc"] > 0.97


def test_larger_batches_tell_more() -> None:
    inside, reference, outside = (
        normal(400, 0, name="i"),
        normal(400, 1, name="r"),
        normal(400, 2, (0.7, 0.7), "o"),
    )
    rows = detect(inside, reference, {"o": outside}, draws=(4,), batches=(1, 4, 16), resamplings=20)
    values = [only(rows, statistic="typicality", scale="total", M=m)["auroc"] for m in (1, 4, 16)]
    assert values[0] < values[1] - 0.1 < values[2] - 0.2 and values[2] > 0.95


def test_interval_counts_all_three_sets() -> None:
    """Law: over 150 real choices of 12 reference and 80 tested images the AUROC spreads as wide as
    the intervals say (factor 1.3), and they hold its mean in 95 % (from 88 on: few references). An
    entropy taken as known would be too narrow: with the same tested images and 2000 references the
    interval is narrower by a third."""
    found, sure = [], []
    for trial in range(150):
        rng = np.random.default_rng(trial)
        inside, outside, few, many = (
            made(rng.normal(size=(n, 1)) + shift, name, ("base",))
            for n, shift, name in ((80, 0, "i"), (80, 1.5, "o"), (12, 0, "r"), (2000, 0, "m"))
        )
        found.append(only(_total(inside, few, outside, trial)))
        if trial < 15:
            sure.append(only(_total(inside, many, outside, trial)))
    value, low, high = np.array([[r[k] for k in ("auroc", "low", "high")] for r in found]).T
    widths = np.quantile(value, 0.975) - np.quantile(value, 0.025), np.mean(high - low)
    assert 1 / 1.3 < widths[1] / widths[0] < 1.3
    assert np.mean((low <= value.mean()) & (value.mean() <= high)) > 0.88
    assert np.mean([r["high"] - r["low"] for r in sure]) < 0.67 * widths[1]


def _total(inside: Scores, reference: Scores, outside: Scores, seed: int) -> list[dict]:
    rows = detect(inside, reference, {"o": outside}, draws=(1,), resamplings=100, seed=seed)
    return [row for row in rows if row["statistic"] == "typicality"]


def test_two_reference_images() -> None:
    """A resampling may draw one image twice, which has no spread to divide by: it is replaced."""
    rows = detect(
        normal(10, 0, name="i"),
        normal(2, 1, name="r"),
        {"o": normal(10, 2, name="o")},
        resamplings=60,
    )
    assert all(math.isfinite(row[k]) for row in rows for k in ("auroc", "low", "high"))


def test_reproducible() -> None:
    sets = normal(30, 0, name="i"), normal(30, 1, name="r"), {"o": normal(30, 2, name="o")}
    state = np.random.get_state()[1].copy()
    first, again, other = (
        detect(*sets, batches=(2,), resamplings=20, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert np.array_equal(np.random.get_state()[1], state)


# Draws of the bound


def test_more_draws_tell_more() -> None:
    """Law: for normal code lengths whose means are d standard deviations apart the AUROC of the
    typicality is p^2 + (1 - p)^2 with p = Phi(d / sqrt 2), and the noise of N draws adds to those
    deviations. So it rises with N. The gain is the difference of the rows; its interval is narrower
    than that of an AUROC, since both N see the same images."""
    settings = {"draws": (1, 4, 64), "noise": 3.0}
    inside, reference, outside = (
        normal(300, 0, name="i", **settings),
        normal(300, 1, name="r", draws=(8,)),
        normal(300, 2, (3.0, 0.0), "o", **settings),
    )
    rows = detect(inside, reference, {"o": outside}, resamplings=200, seed=3)
    gains = draws_gains(inside, reference, {"o": outside}, resamplings=200, seed=3)
    at = {n: only(rows, statistic="typicality", scale="total", N=n) for n in (1, 4, 64)}
    for n, row in at.items():
        p = norm.cdf(3 / math.sqrt(2 + 2 * 9 / n) / math.sqrt(2))
        assert row["auroc"] == pytest.approx(p**2 + (1 - p) ** 2, abs=0.07)
    assert at[1]["auroc"] + 0.05 < at[4]["auroc"] < at[64]["auroc"] - 0.05
    for gain, (few, many) in zip(gains, ((1, 4), (4, 64)), strict=True):
        assert (gain["from"], gain["to"], gain["M"], gain["set"]) == (few, many, 1, "o")
        assert gain["gain"] == pytest.approx(at[many]["auroc"] - at[few]["auroc"])
        assert 0 < gain["low"] <= gain["gain"] <= gain["high"]
    assert gains[1]["high"] - gains[1]["low"] < at[4]["high"] - at[4]["low"]
    base = draws_gains(inside, reference, {"o": outside}, scale="base", resamplings=20)
    one = {n: only(rows, statistic="typicality", scale="base", N=n)["auroc"] for n in (1, 4)}
    assert base[0]["gain"] == pytest.approx(one[4] - one[1])


@pytest.mark.parametrize("draws", [(1, 5, 20, 100), (3,), (2, 6), (1, 2, 4, 8)])
def test_strata_are_nested(draws: tuple[int, ...]) -> None:
    """For every N the first N draws, and every N after them, lie one in each of N equal parts; all
    orders are drawn, so the first stratum is uniform."""
    count = draws[-1]
    strata = nested_strata(400, draws, torch.Generator().manual_seed(0)).numpy()
    for n in draws:
        parts = np.sort((strata * n // count).reshape(400, count // n, n), axis=2)
        assert (parts == np.arange(n)).all()
    hits = np.bincount(strata[:, 0], minlength=count)
    assert ((hits - 400 / count) ** 2).sum() * count / 400 < count + 6 * math.sqrt(2 * count)
    again = nested_strata(400, draws, torch.Generator().manual_seed(0)).numpy()
    assert np.array_equal(strata, again) and len(np.unique(strata, axis=0)) > 1


def test_every_draw_is_one_evaluation() -> None:
    """K draws call each network K times an image, at levels and noise of its own for each image,
    also where all images are one."""
    seen: list[np.ndarray] = []

    def network(z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
        seen.append(gamma.flatten().numpy().copy())
        return torch.zeros_like(z_t)

    model = Cascade(Identity(), (1, 4, 4), [network], LinearSchedule(-10.0, 4.0))
    grey = data.constant_images(6, (1, 4, 4))
    found = image_scores(model, grey, draws=(1, 5, 10), batch_size=4)
    assert found.estimates.shape == (6, 10, 1) and sum(map(len, seen)) == 60
    assert len(np.unique(np.concatenate(seen))) == 60 and len(np.unique(found.estimates)) == 60
    # one image's levels lie one in each tenth of the schedule
    levels = np.sort(np.stack([seen[k] for k in range(10)])[:, 0])
    assert (np.floor((levels + 10) / 14 * 10) == np.arange(10)).all()
    assert len(set(found.digests)) == 1


# Scores of images


def test_scores_are_the_bound() -> None:
    """The mean over many draws is that of `evaluate`, scale by scale, at every N, within 4.5
    standard errors; a model of one scale has a total only."""
    x = images(40)
    found = image_scores(cascade(), x, draws=(1, 5, 50), seed=5)
    wanted = evaluate(cascade(), x, repeats=8, times_per_image=16, seed=6)
    exact = wanted.parts.sum(3).mean(axis=(0, 1))
    assert found.scales == ("base", "details1") and found.names == ("base", "details1", "total")
    for n in (1, 5, 50):
        some = found.at(n)
        assert some.draws == found.draws[: found.draws.index(n) + 1]
        assert np.array_equal(some.per_scale, found.estimates[:, :n].mean(axis=1))
        errors = np.abs(some.per_scale.mean(axis=0) - exact)
        noise = found.noise(min(n, 5))  # that of 50 draws is smaller than of 5
        assert all(e < 4.5 * noise[s] / math.sqrt(40) for e, s in zip(errors, found.scales))
    assert np.allclose(found.total, found.per_scale.sum(axis=1))
    assert image_scores(cascade(), x.long(), draws=1).digests == found.digests
    flat = image_scores(cascade(0), x[:10], draws=2)
    assert flat.names == ("total",) and flat.columns.shape == (10, 1)
    assert math.isnan(flat.noise(2)["total"])


def test_scores_of_some_images_and_the_seed() -> None:
    x = images(10)
    found = image_scores(cascade(), x, draws=2, seed=5)
    some = found.part([7, 2])
    assert np.array_equal(some.total, found.total[[7, 2]])
    assert some.digests == (found.digests[7], found.digests[2]) and len(set(found.digests)) == 10
    assert np.array_equal(found.part(slice(3, 5)).columns, found.columns[3:5])
    again, other = (image_scores(cascade(), x, draws=2, seed=seed) for seed in (5, 6))
    assert np.array_equal(again.estimates, found.estimates)
    assert not np.array_equal(other.estimates, found.estimates)


def test_noise_of_a_score() -> None:
    """Law: the noise that is reported for N draws is the spread of an image's score over 25 seeds
    (pooled over 60 images, factor 1.25). That of independent draws falls with the root of N, and
    stratified draws have less, on every scale."""
    x, left = images(60), {}
    for times in ("stratified", "uniform"):
        runs = [image_scores(cascade(), x, draws=(2, 8), times=times, seed=s) for s in range(25)]
        said = [math.sqrt(np.mean([r.noise(2)[k] ** 2 for r in runs])) for k in runs[0].names]
        few, many = (
            np.stack([r.at(n).columns for r in runs]).var(axis=0, ddof=1).mean(axis=0) ** 0.5
            for n in (2, 8)
        )
        assert (np.abs(np.log(said / few)) < math.log(1.25)).all()
        left[times] = many
    assert few / many == pytest.approx([2, 2, 2], rel=0.15)
    assert (left["stratified"] < 0.9 * left["uniform"]).all()


@pytest.fixture(scope="module")
def photo_rows() -> list[dict]:
    """The table of photos32-wavelet: 20 held-out photographs against 6 images each of three kinds,
    20 others as the reference."""
    model, photos = pcdm_lib.load_pretrained("photos32-wavelet"), data.load_data("photos").heldout
    generator = torch.Generator().manual_seed(0)
    strange = {
        "uniform noise": torch.randint(256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "black": torch.zeros(6, 3, 32, 32, dtype=torch.uint8),
        "plain colours": torch.randint(
            256, (6, 3, 1, 1), generator=generator, dtype=torch.uint8
        ).expand(-1, -1, 32, 32),
    }
    known = image_scores(model, photos[:20], draws=(2, 8), seed=0)
    entropy = image_scores(model, photos[20:40], draws=4, seed=9)
    outliers = {
        name: image_scores(model, x, draws=(2, 8), seed=seed)
        for seed, (name, x) in enumerate(strange.items(), 1)
    }
    rows = detect(known, entropy, outliers, batches=(1, 2), resamplings=20)
    for row in (r for r in rows if r["M"] == 1):
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def test_shipped_model_and_uniform_noise(photo_rows: list[dict]) -> None:
    """Noise is told from photographs without an error by every statistic and scale: AUROC 1,
    interval and all."""
    for row in photo_rows:
        if row["set"] == "uniform noise":
            assert row["auroc"] == row["low"] == row["high"] == 1


def test_shipped_model_and_black_images(photo_rows: list[dict]) -> None:
    """Black images have shorter codes than any photograph, so the likelihood is wrong in every
    pair, the typicality of the base right in every pair and that of the total nearly so."""
    for row in (r for r in photo_rows if r["N"] == 8):
        if row["set"] == "black" and row["scale"] == "base":
            assert row["auroc"] == (0 if row["statistic"] == "likelihood" else 1)
        if row["set"] == "black" and row["scale"] == "total":
            assert row["auroc"] < 0.02 if row["statistic"] == "likelihood" else row["auroc"] > 0.97


def test_shipped_model_and_plain_colours(photo_rows: list[dict]) -> None:
    """This small model has not learnt that plain colours are smooth: some cost as much as
    photographs, and one of them alone is not told reliably."""
    here = {"set": "plain colours", "scale": "total", "M": 1, "N": 8}
    assert 0.5 < only(photo_rows, **here, statistic="typicality")["auroc"] < 0.95
    assert only(photo_rows, **here, statistic="likelihood")["auroc"] < 0.5


def test_figures(photo_rows: list[dict]) -> None:
    """Every set is drawn, with titles and units; a choice that has no rows is refused."""
    inside, outside = normal(30, 0, name="i"), normal(30, 1, (50.0, 0.0), "o")
    figure = typicality_figures.code_length_histograms(
        inside, normal(30, 2, name="r"), {"far": outside}, "the data", "a label"
    )
    assert [ax.get_title() for ax in figure.axes[:3]] == [
        "all scales together",
        "scale base",
        "scale details1",
    ]
    assert (
        all(ax.get_xlabel() == "bits per dimension" for ax in figure.axes[3:])
        and "95 % of the data" in figure.get_supxlabel()
    )
    assert any("30 off the axis" in text.get_text() for text in figure.axes[3].texts)
    scales = typicality_figures.auroc_by_scale(photo_rows, draws=2)
    assert [ax.get_title() for ax in scales.axes] == ["uniform noise", "black", "plain colours"]
    assert len(scales.axes[0].get_yticklabels()) == len(
        statistics(("base", "details1"))
    ) and "N = 2)" in scales.get_suptitle().replace("\n", " ")
    models = {"a model": photo_rows, "another": photo_rows, "a third": photo_rows, "d": photo_rows}
    by_draws = typicality_figures.auroc_by_draws(models, "details1", label="a label")
    shown = [ax for ax in by_draws.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == [*models]
    assert shown[-1].get_xlabel() == "draws of the bound an image, N"
    assert "details1" in by_draws.get_suptitle() and len(shown[0].containers) == 3
    alone = typicality_figures.auroc_by_draws({"a model": photo_rows}, batch=2)
    assert [faults(f) for f in (figure, scales, by_draws, alone)] == [[], [], [], []]
    for call in (
        lambda: typicality_figures.auroc_by_scale(photo_rows, batch=9),
        lambda: typicality_figures.auroc_by_draws(models, "details7"),
    ):
        with pytest.raises(ValueError, match="no rows"):
            call()
    plt.close("all")


# Errors


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("M=0 images cannot be drawn from 4", lambda x: batch_means(x, 0)),
        ("M=5 images cannot be drawn from 4: choose 1 <= M <= 4", lambda x: batch_means(x, 5)),
        (r"scores has the shape \(0,\)", lambda x: typicality(x[:0], x)),
        (r"reference has the shape \(0,\)", lambda x: typicality(x, x[:0])),
        (
            "reference holds 1 values of 4 that are NaN or infinite",
            lambda x: typicality(x, np.array([1, 2, math.nan, 3])),
        ),
        (
            r"scores \(4,\) and reference \(4, 1\) need the same scales",
            lambda x: typicality(x, x[:, None]),
        ),
        (
            "how='mean': expected 'max' or 'sum'",
            lambda x: combined_typicality(x[:, None], x[:, None], "mean"),
        ),
        ("scale by scale", lambda x: combined_typicality(x, x)),
        (
            "1 reference images have no spread",
            lambda x: combined_typicality(x[:, None], x[:1, None]),
        ),
        ("no spread on some scale", lambda x: combined_typicality(x[:, None], np.ones((3, 1)))),
        (r"in_scores has the shape \(0,\), expected \(n,\)", lambda x: auroc(x[:0], x)),
        (r"out_scores has the shape \(4, 1\)", lambda x: auroc(x, x[:, None])),
        ("out_scores holds 4 values of 4 that are NaN", lambda x: auroc(x, x * math.inf)),
        (
            "resamplings >= 1 and 0 < confidence < 1, got resamplings=0",
            lambda x: auroc(x, x, resamplings=0),
        ),
        ("confidence=1", lambda x: auroc(x, x, confidence=1)),
    ],
)
def test_errors(match: str, call: Callable[[np.ndarray], object]) -> None:
    with pytest.raises(ValueError, match=match):
        call(np.array([1.0, 2, 3, 4]))


def test_errors_of_detect() -> None:
    inside, reference, outside = (
        normal(10, 0, name="i"),
        normal(10, 1, name="r"),
        normal(6, 2, name="o"),
    )
    broken, fewer = made(np.full((4, 2), math.nan), "b"), normal(4, 3, draws=(1, 2))
    overlapping = Scores(
        reference.estimates,
        reference.scales,
        reference.draws,
        "stratified",
        0,
        (*inside.digests[:2], *reference.digests[2:]),
    )
    for match, changes in (
        ("no outlier sets", {"outliers": {}}),
        (
            "M=4: the smallest set has 6 images and has to give two batches, so choose 1 <= M <= 3",
            {"batches": (1, 4)},
        ),
        ("M=0", {"batches": (0,)}),
        ("N=2 draws: these images were scored with 1, 4, so choose one", {"draws": (1, 2)}),
        ("1 reference images all have one code length", {"reference": reference.part([0])}),
        ("2 of the 10 images of inside are reference images too", {"reference": overlapping}),
        (
            r"6 of the 6 images of outliers\['o'\] are reference images too",
            {"reference": made(np.random.default_rng(0).normal(size=(10, 2)), "o")},
        ),
        (r"outliers\['o'\] holds 12 values of 12 that are NaN", {"outliers": {"o": broken}}),
        (r"inside has the shape \(0, 3\)", {"inside": inside.part([])}),
        (
            r"outliers\['o'\] was scored with 1, 2 stratified draws an image, inside with 1, 4",
            {"outliers": {"o": fewer}},
        ),
        (
            r"reference was scored on scales \('base', 'residual1'\)",
            {"reference": made(np.ones((4, 2)), scales=("base", "residual1"))},
        ),
        ("got resamplings=0", {"resamplings": 0}),
    ):
        with pytest.raises(ValueError, match=match):
            detect(
                **{"inside": inside, "reference": reference, "outliers": {"o": outside}} | changes
            )
    with pytest.raises(ValueError, match="scale='details7': this model has 'base', 'details1'"):
        draws_gains(inside, reference, {"o": outside}, scale="details7")


@pytest.mark.parametrize(
    ("match", "settings"),
    [
        (r"draws=0: expected numbers of at least 1", {"draws": 0}),
        (r"draws=\(\): expected", {"draws": ()}),
        (r"draws=\(1, 5, 12\): expected .* each of which divides the next", {"draws": (1, 5, 12)}),
        (r"draws=\(5, 5\)", {"draws": (5, 5)}),
        (r"draws=\(20, 5\)", {"draws": (20, 5)}),
        ("'stratified' or 'uniform', got 128 and 'even'", {"times": "even"}),
        ("batch_size >= 1", {"batch_size": 0}),
    ],
)
def test_errors_of_image_scores(match: str, settings: dict) -> None:
    with pytest.raises(ValueError, match=match):
        image_scores(cascade(), images(2), **settings)


def test_images_that_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="no images"):
        image_scores(cascade(), images(0))
    with pytest.raises(ValueError, match="takes integer images"):
        image_scores(cascade(), images(2)[..., :2])
    broken = Cascade(
        Identity(), (1, 4, 4), [lambda z_t, *_: z_t * math.nan], LinearSchedule(-10.0, 4.0)
    )
    with pytest.raises(FloatingPointError, match="not finite"):
        image_scores(broken, images(2), draws=1)
