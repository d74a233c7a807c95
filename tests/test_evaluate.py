"""Evaluation: what its standard errors mean, and that stratified times earn their keep."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pcdm_lib.diffusion import LinearSchedule
from pcdm_lib.likelihood import (
    Evaluation,
    code_lengths,
    evaluate,
    exact_cascade,
    example_source,
    kraft_sum,
    paired_difference,
)
from pcdm_lib.likelihood.evaluation import TERMS, draw_times
from pcdm_lib.maps import HaarWavelet
from pcdm_lib.models import Cascade, bits_per_dim


class Shrink(nn.Module):
    """A cheap denoiser, the best for Gaussian data of variance 1/4; with dropout, so that modes
    matter."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
        sigma2 = torch.sigmoid(gamma).reshape(-1, 1, 1, 1)
        return self.dropout(sigma2.sqrt() / (0.25 * (1 - sigma2) + sigma2) * z_t)


def cascade() -> Cascade:
    return Cascade(HaarWavelet(1), (1, 4, 4), [Shrink(), Shrink()], LinearSchedule(-10.0, 4.0))


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randint(
        60, 200, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def record(parts: np.ndarray) -> Evaluation:
    return Evaluation(parts, ("base", "details1"), None, "stratified", "EMA", 0)


def test_standard_errors_by_hand() -> None:
    """se_images is the spread of the images' means less the noise within images, se_noise the
    spread of the repeats' means, each over sqrt(n); one gives nan."""
    totals = np.array([[1.0, 3.0], [5.0, 7.0], [6.0, 8.0]])  # (images, repeats)
    parts = np.zeros((3, 2, 2, 3))
    parts[:, :, 1, 2] = totals
    found = record(parts)
    assert found.bpd == 5.0 and found.per_image.tolist() == [2.0, 6.0, 7.0]
    assert found.se_images == pytest.approx(math.sqrt((np.var([2, 6, 7], ddof=1) - 2 / 2) / 3))
    assert record(parts[:, :1]).se_images == pytest.approx(np.std([1, 5, 6], ddof=1) / math.sqrt(3))
    assert found.se_noise == pytest.approx(np.std([4, 6], ddof=1) / math.sqrt(2))
    assert math.isnan(record(parts[:1]).se_images) and math.isnan(record(parts[:, :1]).se_noise)
    same = record(np.ones((3, 2, 2, 3)))
    assert same.se_images == 0 and same.se_noise == 0
    assert found.se == pytest.approx(math.hypot(found.se_images, found.se_noise))


def test_images_and_noise_are_told_apart() -> None:
    """Law: with a spread of 1 over images and noise of 3 in every estimate, the two errors are 1 /
    sqrt(n) and 3 / sqrt(n repeats)."""
    generator, n, repeats = np.random.default_rng(0), 4000, 6
    parts = np.zeros((n, repeats, 1, 3))
    parts[:, :, 0, 1] = generator.normal(size=(n, 1)) + 3 * generator.normal(size=(n, repeats))
    found = Evaluation(parts, ("base",), None, "uniform", "raw", 0)
    assert found.se_images == pytest.approx(1 / math.sqrt(n), rel=0.1)
    # six repeats know their spread to a third
    assert 0.4 < found.se_noise / (3 / math.sqrt(n * repeats)) < 1.8


def test_constant_images_have_noise_only() -> None:
    """Copies of one image have no spread over images, however noisy each estimate is."""
    result = evaluate(
        cascade(), images(1).expand(256, -1, -1, -1), repeats=16, times_per_image=1, times="uniform"
    )
    raw = result.per_image.std(ddof=1) / math.sqrt(256)
    assert raw > 0.5 * result.se_noise > 0
    assert result.se_images < 0.5 * raw


def test_strata_within_an_image() -> None:
    """Every image meets every stratum once, the whole set every finer one; so four times an image
    beat four repeats of one."""
    for times in draw_times(
        5, 4, "stratified", torch.Generator().manual_seed(0), "cpu", torch.float64
    ).T:
        assert (times * 4).long().tolist() == [0, 1, 2, 3]
    all_times = draw_times(
        5, 4, "stratified", torch.Generator().manual_seed(1), "cpu", torch.float64
    ).flatten()
    assert sorted((all_times * 20).long().tolist()) == list(range(20))
    spread = [
        evaluate(cascade(), images(64), repeats=16 // k, times_per_image=k)
        .parts.sum((2, 3))
        .var(1, ddof=1)
        .mean()
        / (16 // k)
        for k in (1, 4)
    ]
    assert spread[1] < 0.7 * spread[0]


def test_standard_error_of_the_noise_is_right() -> None:
    """Law: over 40 seeds, the spread of bpd is the standard error that each reports (factor 1.5),
    for both kinds of times."""
    x, model = images(16), cascade()
    for times in ("stratified", "uniform"):
        runs = [evaluate(model, x, repeats=8, seed=seed, times=times) for seed in range(40)]
        spread = np.std([r.bpd for r in runs], ddof=1)
        reported = math.sqrt(np.mean([r.se_noise**2 for r in runs]))
        assert 1 / 1.5 < spread / reported < 1.5


def test_stratified_times_reduce_the_variance() -> None:
    """Law: over 40 seeds the variance of the dataset's mean is more than halved."""
    x, model = images(64), cascade()
    variance = [
        np.var(
            [
                evaluate(model, x, repeats=1, times_per_image=1, seed=s, times=times).bpd
                for s in range(40)
            ],
            ddof=1,
        )
        for times in ("uniform", "stratified")
    ]
    print(variance[0] / variance[1])
    assert variance[0] > 2 * variance[1]


def test_table_and_dict() -> None:
    """The table's shares sum to bpd; the dictionary is JSON; the text names the bound."""
    result = evaluate(cascade(), images(20), repeats=2, weights="EMA", seed=4)
    table = result.table()
    assert list(table) == ["base", "details1", "total"]
    for row in table.values():
        assert row["total"] == pytest.approx(sum(row[t] for t in TERMS))
    assert table["total"]["total"] == pytest.approx(result.bpd)
    assert sum(table[s]["total"] for s in ("base", "details1")) == pytest.approx(result.bpd)
    record = json.loads(json.dumps(result.to_dict()))
    assert (
        record["bpd"] == result.bpd
        and record["bound"] == "continuous time"
        and record["weights"] == "EMA"
        and record["images"] == 20
    )
    assert "T = 7" in str(evaluate(cascade(), images(3), steps=7)) and "continuous time" in str(
        result
    )


def test_steps_cost_more() -> None:
    """The T-step bound is above the continuous one, more so for fewer steps."""
    few, many, all_ = (
        evaluate(cascade(), images(256), repeats=8, steps=steps).bpd for steps in (5, 50, None)
    )
    assert few > many + 0.1 and many > all_


def test_reproducible_whatever_the_state() -> None:
    """The same seed gives the same figures; the mode of training is restored, dropout is off
    meanwhile; the global generator is untouched."""
    model, x, state = cascade(), images(16), torch.get_rng_state()
    first = evaluate(model.train(), x, seed=3)
    assert model.training and model.networks["base"].dropout.training
    second = evaluate(model.eval(), x, seed=3)
    assert not model.training
    assert np.array_equal(first.parts, second.parts) and torch.equal(torch.get_rng_state(), state)
    assert not np.array_equal(first.parts, evaluate(model, x, seed=4).parts)


def test_mode_is_restored_after_an_error() -> None:
    model = cascade().train()
    with pytest.raises(ValueError, match="must lie in"):
        evaluate(model, torch.full((2, 1, 4, 4), 300))
    assert model.training
    with pytest.raises(ValueError):
        code_lengths(model, example_source(), 2)
    assert model.training


def test_errors() -> None:
    model, x = cascade(), images(2)
    for match, arguments in (
        ("no images", {"images": x[:0]}),
        ("at least 1, got 0", {"repeats": 0}),
        ("at least 1", {"batch_size": 0}),
        ("'stratified' or 'uniform'", {"times": "antithetic"}),
        ("takes integer images", {"images": x[..., :2]}),
    ):
        with pytest.raises(ValueError, match=match):
            evaluate(model, **{"images": x} | arguments)
    broken = Cascade(
        HaarWavelet(1), (1, 4, 4), [lambda z, *_: z * math.nan] * 2, LinearSchedule(-10.0, 4.0)
    )
    with pytest.raises(FloatingPointError, match="not finite"):
        evaluate(broken, x)


def test_paired_difference() -> None:
    """Shared images cancel: the difference's standard error is smaller than either's."""
    x = images(64)
    a, b = evaluate(cascade(), x, repeats=4), evaluate(cascade(), x, repeats=4, steps=30)
    mean, error = paired_difference(b, a)
    assert mean == pytest.approx(b.bpd - a.bpd) and error < a.se_images
    with pytest.raises(ValueError, match="64 and 3"):
        paired_difference(a, evaluate(cascade(), x[:3]))


def test_bits() -> None:
    assert bits_per_dim(8 * math.log(2), 4) == pytest.approx(2.0)
    nats = torch.full((3,), 16 * math.log(2))
    assert torch.allclose(bits_per_dim(nats, 16), torch.ones(3))


def test_code_lengths_and_their_errors() -> None:
    """Over 20 seeds the spread of an image's code length is the standard error reported (factor 1.4
    over all images), and Kraft's sum has no negative parts even where few draws make the errors
    large."""
    source = example_source()
    model = exact_cascade(source, HaarWavelet(1))
    runs = [code_lengths(model, source, 40, seed) for seed in range(20)]
    spread = torch.stack([r[0] for r in runs]).var(0).mean().sqrt()
    reported = torch.stack([r[1] ** 2 for r in runs]).mean().sqrt()
    assert 1 / 1.4 < float(spread / reported) < 1.4
    assert kraft_sum(model, source, draws=4)[0] > 0
