"""Noise schedules: monotone, differentiated and inverted rightly; times stratified and each of them
uniform."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

from pcdm_lib.diffusion import (
    FittedSchedule,
    LinearSchedule,
    MonotoneSchedule,
    Schedule,
    alpha_sigma,
    make_schedule,
    stratified_times,
)


def shuffled(
    seed: int = 0, gamma_min: float = -9.0, gamma_max: float = 4.0, learn_endpoints: bool = False
) -> MonotoneSchedule:
    """A monotone schedule that is far from linear, in float64."""
    schedule = MonotoneSchedule(gamma_min, gamma_max, learn_endpoints, hidden=16).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        schedule.outer.copy_(torch.randn(16, generator=generator, dtype=torch.float64) - 1)
        schedule.inner.copy_(15 * torch.rand(16, generator=generator, dtype=torch.float64))
    return schedule


def fitted() -> FittedSchedule:
    """A fitted schedule over a loss with a peak, a tail and an interval without any loss, in
    float64."""
    schedule = FittedSchedule(-9.0, 4.0, bins=6).double()
    schedule.fit(torch.tensor([0.0, 0.3, 1.0, 0.5, 0.1, 0.01]))
    return schedule


ALL = [
    LinearSchedule(-9.0, 4.0).double(),
    LinearSchedule(-9.0, 4.0, learn_endpoints=True).double(),
    MonotoneSchedule(-9.0, 4.0).double(),
    shuffled(0),
    shuffled(1, learn_endpoints=True),
    FittedSchedule(-9.0, 4.0).double(),
    fitted(),
]


@pytest.mark.parametrize("schedule", ALL)
def test_value_derivative_and_inverse(schedule: Schedule) -> None:
    """gamma rises from gamma_min to gamma_max, `derivative` is autograd's, `inverse` inverts,
    outside values clip."""
    t = torch.linspace(0, 1, 257, dtype=torch.float64, requires_grad=True)
    gamma = schedule(t)
    assert bool((gamma.diff() > 0).all())
    first, last = gamma[0].item(), gamma[-1].item()
    # the span's logarithm was rounded to float32
    assert first == -9.0 and math.isclose(last, 4.0, abs_tol=5e-6)
    assert first == schedule.gamma_min.item() and math.isclose(
        last, schedule.gamma_max.item(), abs_tol=1e-12
    )
    (slope,) = torch.autograd.grad(gamma.sum(), t)
    assert torch.allclose(schedule.derivative(t), slope, rtol=1e-10, atol=1e-10) and bool(
        (slope > 0).all()
    )


def test_monotone_starts_near_linear_and_can_leave_it() -> None:
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    line = LinearSchedule(-9.0, 4.0).double()(t)
    assert (MonotoneSchedule(-9.0, 4.0).double()(t) - line).abs().max().item() < 0.2
    assert (shuffled()(t) - line).abs().max().item() > 1.0


def test_a_fitted_schedule_levels_the_loss() -> None:
    """Times fall in proportion to the loss, but for the share that stays uniform: 1/p weights make
    a peaked loss almost level, and the estimate of its mean stays what it was."""
    # of its way from gamma_min to gamma_max
    gamma = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    loss = torch.exp(-(((gamma - 0.4) / 0.08) ** 2))
    schedule = FittedSchedule(0.0, 1.0, bins=32).double()
    schedule.fit(loss.reshape(32, -1).mean(dim=1))
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    weighted = torch.exp(-(((schedule(t) - 0.4) / 0.08) ** 2)) * schedule.derivative(t)
    assert weighted.mean().item() == pytest.approx(loss.mean().item(), rel=1e-4)
    assert weighted.std() / weighted.mean() < 0.5 < 1.5 < loss.std() / loss.mean()
    # not unseen
    late = torch.tensor([1.0 - 0.05 * FittedSchedule.FLOOR], dtype=torch.float64)
    assert schedule(late).item() > 0.9


@pytest.mark.parametrize("loss", [torch.ones(5), torch.full((32,), math.nan), -torch.ones(32)])
def test_a_fit_takes_finite_errors(loss: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="fit takes 32 finite errors"):
        FittedSchedule().fit(loss)


@pytest.mark.parametrize(
    ("kind", "endpoints", "learned"),
    [
        ("linear", False, set()),
        ("learned_linear", False, {"start", "log_span"}),
        ("monotone", False, {"slope", "inner", "centre", "outer"}),
        ("fitted", False, set()),
        ("monotone", True, {"start", "log_span", "slope", "inner", "centre", "outer"}),
    ],
)
def test_what_is_learned(kind: str, endpoints: bool, learned: set[str]) -> None:
    """Only what the name says is a parameter; the rest is a buffer, so it is saved and moved all
    the same."""
    schedule = make_schedule(kind, -13.3, 5.0, endpoints)
    assert {name for name, _ in schedule.named_parameters()} == learned
    assert {"start", "log_span"} <= set(schedule.state_dict())
    assert isinstance(schedule, nn.Module) and schedule.learned_endpoints == ("start" in learned)
    assert math.isclose(schedule.gamma_max.item(), 5.0, abs_tol=1e-5)


def test_alpha_sigma() -> None:
    """alpha^2 + sigma^2 = 1 and log(sigma^2 / alpha^2) = gamma."""
    gamma = torch.linspace(-20, 20, 41, dtype=torch.float64)
    alpha, sigma = alpha_sigma(gamma)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(gamma)) and torch.allclose(
        2 * (sigma / alpha).log(), gamma
    )


@pytest.mark.parametrize(
    "ends", [(5.0, 5.0), (5.0, -1.0), (math.nan, 1.0), (-math.inf, 1.0), (0.0, math.inf)]
)
def test_wrong_endpoints(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="gamma_min < gamma_max must be finite"):
        LinearSchedule(*ends)


def test_wrong_kinds() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'cosine'"):
        make_schedule("cosine", -1.0, 1.0)
    with pytest.raises(ValueError, match="learned_linear"):
        make_schedule("linear", -1.0, 1.0, learn_endpoints=True)
    with pytest.raises(ValueError, match="fitted schedule has fixed endpoints"):
        make_schedule("fitted", -1.0, 1.0, learn_endpoints=True)
    with pytest.raises(ValueError, match="n=0"):
        stratified_times(0)


@pytest.mark.parametrize("n", [1, 2, 7, 128])
def test_one_time_in_each_stratum(n: int) -> None:
    for seed in range(20):
        t = stratified_times(n, torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert (
            torch.equal((t * n).floor().long(), torch.arange(n))
            and float(t.max()) < 1
            and float(t.min()) >= 0
        )
    assert stratified_times(n).dtype == torch.float32


def test_each_time_is_uniform_once_shuffled() -> None:
    """The first of n times in a random order, over 2,000 draws: Kolmogorov-Smirnov p > 1e-4."""
    generator = torch.Generator().manual_seed(0)
    first = [
        float(stratified_times(6, generator)[torch.randperm(6, generator=generator)[0]])
        for _ in range(2000)
    ]
    assert stats.kstest(first, "uniform").pvalue > 1e-4


def test_float32_never_reaches_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest offset that float64 holds rounds to 1 in float32; the time stays below 1, in
    every dtype."""
    monkeypatch.setattr(
        torch, "rand", lambda *a, **k: torch.tensor(1 - 2.0**-53, dtype=torch.float64)
    )
    for dtype in (torch.float32, torch.float64):
        for n in (1, 3, 100_000):
            t = stratified_times(n, dtype=dtype)
            assert t.dtype == dtype and float(t.max()) < 1
