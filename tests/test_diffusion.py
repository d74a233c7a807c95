"""One scale's diffusion: each term against Gaussians computed independently."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pcdm_lib.diffusion import (
    LinearSchedule,
    MonotoneSchedule,
    Schedule,
    add_noise,
    alpha_sigma,
    diffusion_term,
    gamma_for_spacing,
    prior_term,
    reconstruction_term,
    reverse_step,
    step_term,
)
from pcdm_lib.maps import HaarWavelet, Identity
from pcdm_lib.maps.lattice import scale_log_prob
from pcdm_lib.models import Scale

SCHEDULES = [LinearSchedule(-6.0, 3.0).double(), MonotoneSchedule(-6.0, 3.0, hidden=8).double()]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bent(z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
    """An arbitrary denoiser."""
    return torch.tanh(z_t) * torch.sigmoid(gamma).reshape(-1, 1, 1, 1)


def conditional(
    schedule: Schedule, t: float, s: float, z_t: Tensor, y: Tensor
) -> tuple[Tensor, float]:
    """Mean and variance of z_s given z_t and y, by conditioning the joint Gaussian of (z_s, z_t):
    z_s = alpha_s y + sigma_s e, z_t = (alpha_t / alpha_s) z_s + independent noise."""
    gamma_t, gamma_s = (
        float(schedule(torch.tensor(v, dtype=torch.float64)).detach()) for v in (t, s)
    )
    var_t, var_s = 1 / (1 + math.exp(-gamma_t)), 1 / (1 + math.exp(-gamma_s))
    alpha_t, alpha_s = math.sqrt(1 - var_t), math.sqrt(1 - var_s)
    covariance = alpha_t / alpha_s * var_s
    return alpha_s * y + covariance / var_t * (z_t - alpha_t * y), var_s - covariance**2 / var_t


@pytest.mark.parametrize("gamma_max", [-1.0, 2.5, 5.0, 12.0])
def test_prior_term_is_the_kl(gamma_max: float) -> None:
    """prior = KL( N(alpha_1 y, sigma_1^2) || N(0, 1) ), summed over coordinates."""
    schedule, y = LinearSchedule(-9.0, gamma_max).double(), 2 * noise(5, 3, 2, 2)
    alpha, sigma = alpha_sigma(schedule.gamma_max)
    expected = kl_divergence(Normal(alpha * y, sigma), Normal(torch.zeros_like(y), 1.0)).sum(
        (1, 2, 3)
    )
    assert torch.allclose(prior_term(y, schedule), expected, rtol=1e-9)
    assert torch.allclose(prior_term(y.float(), schedule), expected.float(), rtol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_step_terms_are_kls(schedule: Schedule) -> None:
    """Law: the k-th term is KL( q(z_s | z_t, y) || p(z_s | z_t) ) of one step, so their sum is the
    T-step diffusion term."""
    steps, y = 7, noise(4, 2, 2, 2)
    for k in range(1, steps + 1):
        t, s, eps = k / steps, (k - 1) / steps, noise(4, 2, 2, 2, seed=k)
        gamma = schedule(torch.full((4,), t, dtype=torch.float64)).detach()
        z_t = add_noise(y, gamma, eps)
        alpha, sigma = alpha_sigma(gamma.reshape(-1, 1, 1, 1))
        y_hat = (z_t - sigma * bent(z_t, gamma, None)) / alpha
        (q_mean, variance), (p_mean, _) = (
            conditional(schedule, t, s, z_t, y),
            conditional(schedule, t, s, z_t, y_hat),
        )
        std = math.sqrt(variance)
        expected = kl_divergence(Normal(q_mean, std), Normal(p_mean, std)).sum((1, 2, 3))
        found = step_term(bent, schedule, y, None, (torch.full((4,), k), steps), eps)
        assert torch.allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.5, 0.499), (0.02, 0.0)])
def test_reverse_step_is_the_posterior(schedule: Schedule, t: float, s: float) -> None:
    """p(z_s | z_t) = q(z_s | z_t, y_hat): mean and standard deviation."""
    z_t = noise(3, 2, 2, 2)
    gamma = schedule(torch.tensor(t, dtype=torch.float64)).detach()
    alpha, sigma = alpha_sigma(gamma)
    y_hat = (z_t - sigma * bent(z_t, gamma.expand(3), None)) / alpha
    mean, variance = conditional(schedule, t, s, z_t, y_hat)
    step = reverse_step(
        bent, schedule, z_t, None, *(torch.tensor(v, dtype=torch.float64) for v in (t, s))
    )
    assert torch.allclose(step.mean, mean, rtol=1e-8, atol=1e-10)
    assert math.isclose(
        float(step.std.detach()), math.sqrt(variance), rel_tol=1e-7
    ) and step.std.shape == (1, 1, 1, 1)


def test_steps_approach_continuous_time() -> None:
    """T times one step's term tends to 1/2 gamma' |eps - eps_hat|^2 at the same time and noise."""
    schedule, y, eps = SCHEDULES[1], noise(4, 1, 2, 2), noise(4, 1, 2, 2, seed=1)
    k = torch.tensor([10, 100_000, 300_000, 999_999])
    coarse = step_term(bent, schedule, y, None, (k, 1_000_000), eps) * 1_000_000
    fine = diffusion_term(bent, schedule, y, None, k / 1_000_000, eps)
    assert torch.allclose(coarse, fine, rtol=1e-3)


def test_reconstruction_term() -> None:
    """-log P(z | z_0) at z_0 = alpha_0 y + sigma_0 eps, positive, and small where the noise is a
    tenth of the spacing."""
    spec = Identity().specs((1, 2, 2), 255)[0]
    z = torch.randint(0, 256, (20, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    y, eps = spec.to_float(z, torch.float64), noise(20, 1, 2, 2)
    for ratio, most in ((0.1, 1e-3), (1.0, 40.0)):
        schedule = LinearSchedule(gamma_for_spacing(spec, ratio), 5.0)
        alpha, sigma = alpha_sigma(schedule.gamma_min.double())
        found = reconstruction_term(spec, schedule, y, z, None, eps)
        assert torch.allclose(
            found, -scale_log_prob(spec, alpha * y + sigma * eps, alpha, sigma, z, None)
        )
        assert float(found.min()) >= 0 and float(found.max()) < most


class Weighted(nn.Module):
    """A denoiser with one weight, which depends on gamma as well."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
        return self.weight * torch.tanh(z_t) * torch.sigmoid(gamma).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("scale", [1.0, 1 / 12])
def test_gradient_of_a_learned_shape(scale: float) -> None:
    """Law: the shape is given the gradient of mean(term^2) / mean(term) held fixed below, that is
    of the estimate's variance; the network and the endpoints that of the bound itself; at any scale
    of the loss."""
    y, eps, t = (
        noise(6, 1, 2, 2),
        noise(6, 1, 2, 2, seed=1),
        torch.rand(6, generator=torch.Generator().manual_seed(2)).double(),
    )

    def gradients(kind: str) -> dict[str, Tensor]:
        schedule, net = MonotoneSchedule(-6.0, 3.0, True, hidden=5).double(), Weighted()
        if kind == "library":
            loss = diffusion_term(net, schedule, y, None, t, eps).mean()
        else:
            gamma = schedule(t)
            squared = ((eps - net(add_noise(y, gamma, eps), gamma, None)) ** 2).sum((1, 2, 3))
            term = schedule.derivative(t) * squared / 2
            loss = term.mean() if kind == "bound" else (term**2).mean() / term.mean().detach()
        (scale * loss).backward()
        return {name: p.grad for name, p in [*schedule.named_parameters(), *net.named_parameters()]}

    found, bound, square = (gradients(k) for k in ("library", "bound", "square"))
    for name in ("slope", "inner", "centre", "outer"):
        assert torch.allclose(found[name], square[name], rtol=1e-9, atol=1e-12)
        assert not torch.allclose(found[name], bound[name], rtol=1e-2)
    for name in ("start", "log_span", "weight"):
        assert torch.allclose(found[name], bound[name], rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 10])
def test_sample_of_a_scale(steps: int) -> None:
    """Integers of some image, the same for the same seed, one call of `on_step` a step."""
    spec, calls = HaarWavelet(1).specs((3, 4, 4), 255)[0], []
    scale = Scale(spec, bent, LinearSchedule(-9.0, 3.0))
    samples = [
        scale.sample(
            None,
            5,
            steps,
            torch.Generator().manual_seed(seed),
            on_step=lambda: calls.append(1),
        )
        for seed in (0, 0, 1)
    ]
    assert (
        samples[0].dtype == torch.int32
        and samples[0].shape == (5, 3, 2, 2)
        and len(calls) == 3 * steps
    )
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])
    assert int(samples[0].min()) >= 0 and int(samples[0].max()) <= 1020


def test_errors() -> None:
    spec, schedule = Identity().specs((1, 2, 2), 3)[0], LinearSchedule(-4.0, 3.0)
    with pytest.raises(ValueError, match="at least one step, got 0"):
        Scale(spec, bent, schedule).sample(None, 1, 0, torch.Generator())
    broken = Scale(spec, lambda z, *_: z * math.nan, schedule)
    with pytest.raises(FloatingPointError, match="sampling of base"):
        broken.sample(None, 1, 2, torch.Generator())
    with pytest.raises(ValueError, match="must be positive"):
        gamma_for_spacing(spec, 0.0)
