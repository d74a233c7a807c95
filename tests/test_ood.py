"""Out-of-distribution detection: the scores by hand, what the intervals mean, and what a shipped
model does with images that are no photographs."""

from __future__ import annotations

import dataclasses
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
from pcdm_lib import data, records
from pcdm_lib.diffusion import LinearSchedule
from pcdm_lib.figures import typicality as typicality_figures
from pcdm_lib.likelihood import evaluate
from pcdm_lib.likelihood.typicality import (
    Scores,
    _levels,
    _resampled,
    auroc,
    batch_means,
    combined_typicality,
    detect,
    image_scores,
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
    repeats: int = 2,
) -> Scores:
    """Scores without images: the code lengths (n, S) without noise, each image with a digest of its
    own."""
    return Scores(
        np.repeat(np.asarray(values, float)[:, None], repeats, axis=1),
        scales,
        4,
        0,
        tuple(f"{name}{i}" for i in range(len(values))),
    )


def normal(n: int, seed: int, shift: tuple[float, float] = (0.0, 0.0), name: str = "x") -> Scores:
    return made(np.random.default_rng(seed).normal(size=(n, 2)) + np.add((2, 3), shift), name)


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
    """A bootstrap draw is the AUROC of the resampled scores, ties included."""
    inside, outside = (
        np.random.default_rng(0).integers(8, size=30),
        np.random.default_rng(1).integers(3, 11, size=17),
    )
    for seed in range(20):
        rng, levels = np.random.default_rng(seed), _levels(inside, outside)
        mine = _resampled(*levels, rng)
        rng = np.random.default_rng(seed)
        x, y = inside[rng.integers(30, size=30)], outside[rng.integers(17, size=17)]
        assert mine == pytest.approx(roc_auc_score([0] * 30 + [1] * 17, [*x, *y]))


def test_interval_covers() -> None:
    """Law: for Gaussians a shift d apart the AUROC is Phi(d / sqrt 2), and 95 % intervals hold it
    in 95 % of 300 trials, up to three standard errors of that share and the two per cent that a
    percentile interval lacks at 60 scores a side."""
    rng, shift, trials = np.random.default_rng(0), 0.8, 300
    truth, held, values = norm.cdf(shift / math.sqrt(2)), 0, []
    for trial in range(trials):
        found = auroc(rng.normal(size=60), rng.normal(size=60) + shift, draws=200, seed=trial)
        held += found.low <= truth <= found.high
        values.append(found.value)
    error = math.sqrt(0.95 * 0.05 / trials)
    assert 0.93 - 3 * error < held / trials < 0.95 + 3 * error
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(trials)


# Tables


def test_rows_are_what_the_parts_give() -> None:
    """Every row of a small table from `typicality`, `combined_typicality` and scikit-learn; the
    rows are JSON."""
    inside, reference, outside = (
        normal(30, 0, name="i"),
        normal(25, 1, name="r"),
        normal(20, 2, (1.0, -0.5), "o"),
    )
    rows = detect(
        inside,
        reference,
        {"shifted": outside},
        batches=(1, 3),
        references=(5, None),
        draws=20,
        seed=7,
    )
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == 2 * (3 + 2 * 5) and statistics(("base",)) == [
        ("likelihood", "total"),
        ("typicality", "total"),
    ]
    order = np.random.default_rng(7).permutation(25)
    for row in rows:
        known, batch = reference.per_scale[order[: row["N"]]], {"batch": row["M"], "seed": 7}
        one = {
            "base": lambda v: v[:, 0],
            "details1": lambda v: v[:, 1],
            "total": lambda v: v.sum(axis=1),
        }.get(row["scale"])
        if row["statistic"] == "likelihood":
            tested = [batch_means(one(s.per_scale), **batch) for s in (inside, outside)]
        elif one:
            tested = [typicality(one(s.per_scale), one(known), **batch) for s in (inside, outside)]
        else:
            tested = [
                combined_typicality(s.per_scale, known, row["scale"][:3], **batch)
                for s in (inside, outside)
            ]
        assert (
            (row["n_in"], row["n_out"])
            == (30 // row["M"], 20 // row["M"])
            == tuple(map(len, tested))
        )
        assert row["auroc"] == pytest.approx(
            roc_auc_score(np.repeat([0, 1], [len(t) for t in tested]), np.concatenate(tested))
        )
        assert row["low"] <= row["auroc"] <= row["high"]


def test_which_scale_sees_it() -> None:
    """Outliers whose base is shorter by as much as their details are longer: the total sees
    nothing, each scale and the combination does; and simpler outliers have a likelihood that is
    wrong in nearly every pair."""
    inside, reference = normal(200, 0, name="i"), normal(200, 1, name="r")
    outliers = {
        "traded": normal(200, 2, (-4.0, 4.0), "t"),
        "simpler": normal(200, 3, (-4.0, -4.0), "s"),
    }
    rows = detect(inside, reference, outliers, references=(None,), draws=20)
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
    rows = detect(
        inside, reference, {"o": outside}, batches=(1, 4, 16), references=(None,), draws=20
    )
    values = [only(rows, statistic="typicality", scale="total", M=m)["auroc"] for m in (1, 4, 16)]
    assert values[0] < values[1] - 0.1 < values[2] - 0.2 and values[2] > 0.95


def test_choice_of_the_reference() -> None:
    """Law: over 200 real choices of N = 5 reference images the spread of the AUROC is what
    `over_reference` says from a pool of 60 (factor 1.5); with large tested sets the interval
    without it is several times too narrow. With all of the pool it is narrower."""
    inside, outside = normal(2000, 0, name="i"), normal(2000, 1, (1.0, 1.0), "o")
    values = []
    for trial in range(200):
        reference = np.random.default_rng(100 + trial).normal(size=(5, 2)).sum(axis=1) + 5
        scores = [typicality(s.total, reference) for s in (inside, outside)]
        values.append(roc_auc_score(np.repeat([0, 1], 2000), np.concatenate(scores)))
    rows = detect(
        inside,
        normal(60, 2, name="r"),
        {"o": outside},
        references=(5, None),
        over_reference=True,
        draws=200,
    )
    few, everything = (only(rows, statistic="typicality", scale="total", N=n) for n in (5, 60))
    width = few["reference_high"] - few["reference_low"]
    assert 1 / 1.5 < width / (np.quantile(values, 0.975) - np.quantile(values, 0.025)) < 1.5
    assert width > 2.5 * (few["high"] - few["low"]) and width > 1.5 * (
        everything["reference_high"] - everything["reference_low"]
    )
    assert few["reference_low"] < few["reference_mean"] < few["reference_high"]
    assert only(rows, statistic="likelihood", scale="total")["reference_low"] is None


def test_two_reference_images_and_every_choice_of_them() -> None:
    """N = 2 may draw one image twice, which has no spread to divide by: such a draw is replaced."""
    rows = detect(
        normal(10, 0, name="i"),
        normal(3, 1, name="r"),
        {"o": normal(10, 2, name="o")},
        references=(2,),
        over_reference=True,
        draws=60,
    )
    assert all(
        math.isfinite(v) for row in rows if row["N"] for v in row.values() if isinstance(v, float)
    )


def test_reproducible() -> None:
    sets = normal(30, 0, name="i"), normal(30, 1, name="r"), {"o": normal(30, 2, name="o")}
    state = np.random.get_state()[1].copy()
    first, again, other = (
        detect(*sets, batches=(2,), over_reference=True, draws=20, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert np.array_equal(np.random.get_state()[1], state)


# Scores of images


def test_scores_are_the_bound() -> None:
    """Per scale and in total what `evaluate` gives; some of the images keep theirs; a model of one
    scale has a total only."""
    x = images(10)
    found, result = (
        image_scores(cascade(), x, repeats=3, times_per_image=2, seed=5),
        evaluate(cascade(), x, repeats=3, times_per_image=2, seed=5),
    )
    assert (
        found.scales == ("base", "details1")
        and found.names == ("base", "details1", "total")
        and len(found) == 10
    )
    assert np.allclose(found.total, result.per_image) and np.allclose(
        found.per_scale, result.parts.sum(3).mean(1)
    )
    some = found.part([7, 2])
    assert np.array_equal(some.total, found.total[[7, 2]]) and some.digests == (
        found.digests[7],
        found.digests[2],
    )
    assert np.array_equal(found.part(slice(3, 5)).columns, found.columns[3:5])
    assert (
        image_scores(cascade(), x.long(), repeats=1).digests == found.digests
        and len(set(found.digests)) == 10
    )
    flat = image_scores(cascade(0), x, repeats=1)
    assert (
        flat.names == ("total",)
        and flat.columns.shape == (10, 1)
        and math.isnan(flat.noise["total"])
    )
    assert records.finite(flat.to_dict())["bits_per_dim"]["total"]["noise"] is None


def test_noise_of_a_score() -> None:
    """Law: the noise that four repeats report is the spread of an image's score over 25 seeds
    (factor 1.25, pooled over 30 images)."""
    x = images(30)
    runs = [
        image_scores(cascade(), x, repeats=4, times_per_image=2, seed=seed) for seed in range(25)
    ]
    spread = np.stack([run.columns for run in runs]).var(axis=0, ddof=1).mean(axis=0) ** 0.5
    for name, wanted in zip(runs[0].names, spread):
        said = math.sqrt(np.mean([run.noise[name] ** 2 for run in runs]))
        assert 1 / 1.25 < said / wanted < 1.25
    told = json.loads(json.dumps(runs[0].to_dict()))
    assert (
        told["images"] == 30
        and told["repeats"] == 4
        and told["bits_per_dim"]["total"]["noise"] == runs[0].noise["total"]
    )
    assert told["bits_per_dim"]["base"]["spread"] == pytest.approx(
        runs[0].per_scale[:, 0].std(ddof=1)
    )


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
    cost = {"repeats": 2, "times_per_image": 4}
    known = image_scores(model, photos[:40], seed=0, **cost)
    outliers = {
        name: image_scores(model, x, seed=seed, **cost)
        for seed, (name, x) in enumerate(strange.items(), 1)
    }
    rows = detect(
        known.part(slice(20)),
        known.part(slice(20, None)),
        outliers,
        batches=(1, 2),
        references=(10, None),
        over_reference=True,
        draws=20,
    )
    for row in (r for r in rows if r["M"] == 1 and r["N"] != 10):
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
    for row in photo_rows:
        if row["set"] == "black" and row["scale"] == "base":
            assert row["auroc"] == (0 if row["statistic"] == "likelihood" else 1)
        if row["set"] == "black" and row["scale"] == "total":
            assert row["auroc"] < 0.02 if row["statistic"] == "likelihood" else row["auroc"] > 0.97


def test_shipped_model_and_plain_colours(photo_rows: list[dict]) -> None:
    """This small model has not learnt that plain colours are smooth: some cost as much as
    photographs, and one of them alone is not told reliably."""
    total = only(photo_rows, set="plain colours", statistic="typicality", scale="total", M=1, N=20)
    assert 0.5 < total["auroc"] < 0.95
    assert (
        only(photo_rows, set="plain colours", statistic="likelihood", scale="total", M=1)["auroc"]
        < 0.5
    )


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
    scales = typicality_figures.auroc_by_scale(photo_rows, size=10)
    assert [ax.get_title() for ax in scales.axes] == ["uniform noise", "black", "plain colours"]
    assert len(scales.axes[0].get_yticklabels()) == len(
        statistics(("base", "details1"))
    ) and "N = 10" in scales.get_suptitle().replace("\n", " ")
    settings = typicality_figures.auroc_by_setting(photo_rows, "details1")
    assert [ax.get_xlabel() for ax in settings.axes] == [
        "images in a batch, M",
        "reference images, N",
    ]
    assert [faults(drawn) for drawn in (figure, scales, settings)] == [[], [], []]
    for call in (
        lambda: typicality_figures.auroc_by_scale(photo_rows, batch=9),
        lambda: typicality_figures.auroc_by_setting(photo_rows, "details7"),
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
        ("draws >= 1 and 0 < confidence < 1, got draws=0", lambda x: auroc(x, x, draws=0)),
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
    broken, fewer = made(np.full((4, 2), math.nan), "b"), made(np.ones((4, 2)), repeats=1)
    overlapping = dataclasses.replace(
        reference, digests=(*inside.digests[:2], *reference.digests[2:])
    )
    for match, changes in (
        ("no outlier sets", {"outliers": {}}),
        (
            "M=4: the smallest set has 6 images and has to give two batches, so choose 1 <= M <= 3",
            {"batches": (1, 4)},
        ),
        ("M=0", {"batches": (0,)}),
        ("N=11: there are 10 reference images, so choose 2 <= N <= 10", {"references": (11,)}),
        ("N=1:", {"references": (1,)}),
        ("2 of the 10 images of inside are reference images too", {"reference": overlapping}),
        (
            r"6 of the 6 images of outliers\['o'\] are reference images too",
            {"reference": made(np.random.default_rng(0).normal(size=(10, 2)), "o")},
        ),
        (r"outliers\['o'\] holds 12 values of 12 that are NaN", {"outliers": {"o": broken}}),
        (r"inside has the shape \(0, 3\)", {"inside": inside.part([])}),
        (
            r"outliers\['o'\] was scored on scales \('base', 'details1'\) with 4 evaluations "
            r"each, inside on .* with 8",
            {"outliers": {"o": fewer}},
        ),
        (
            r"reference was scored on scales \('base', 'residual1'\)",
            {"reference": made(np.ones((4, 2)), scales=("base", "residual1"))},
        ),
        ("got draws=0", {"draws": 0}),
    ):
        with pytest.raises(ValueError, match=match):
            detect(
                **{
                    "inside": inside,
                    "reference": reference,
                    "outliers": {"o": outside},
                    "references": (None,),
                }
                | changes
            )


def test_errors_of_image_scores() -> None:
    with pytest.raises(ValueError, match="no images"):
        image_scores(cascade(), images(0))
    with pytest.raises(ValueError, match="takes integer images"):
        image_scores(cascade(), images(2)[..., :2])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        image_scores(cascade(), images(2), repeats=0)
