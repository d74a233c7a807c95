"""The codecs: pop(push(m, x)) == (m, x) for each, and code lengths against laws and known
values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdm_lib.coding import bits_back
from pcdm_lib.coding.bits_back import FRACTION, BitsBack, Gaussian, Message, Noise, Progressions
from pcdm_lib.coding.chain import Predictor, ScaleCodec, TileCodec, TimeGrid
from pcdm_lib.coding.tiles import TileScales
from pcdm_lib.diffusion import (
    FittedSchedule,
    LinearSchedule,
    MonotoneSchedule,
    alpha_sigma,
    gamma_for_spacing,
)
from pcdm_lib.likelihood import example_source
from pcdm_lib.likelihood.enumerable import ExactDenoiser
from pcdm_lib.maps import HaarWavelet, Identity, LaplacianPyramid

SEEDS = st.integers(0, 2**32 - 1)


def message(words: int = 4000, seed: int = 0) -> Message:
    return Message(np.random.default_rng(seed).integers(0, 2**32, words, dtype=np.uint32))


def assert_law(make, x, words: int = 4000, seed: int = 0) -> Message:
    """pop(push(m, x)) == (m, x), message included, and from what a receiver gets; returns the
    message after the push."""
    m = message(words, seed)
    before = m._coder.get_compressed().copy()
    make().push(m, x)
    pushed = m._coder.get_compressed().copy()
    received = Message(m.finished(), sealed=False)
    assert np.array_equal(np.asarray(make().pop(m)), np.asarray(x))
    assert np.array_equal(m._coder.get_compressed(), before)
    assert np.array_equal(np.asarray(make().pop(received)), np.asarray(x))
    assert np.array_equal(received.words(), before[:-1][m.untouched :])
    return Message(pushed, sealed=False)


def grey(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.int32))


# ---------------------------------------------------------------- each codec


@given(SEEDS, st.floats(0.05, 500), st.integers(1, 300), st.floats(0, 40))
@settings(deadline=None)
def test_gaussian_law_with_escapes(seed, std, count, spread):
    rng = np.random.default_rng(seed)
    mean = rng.integers(-(2**50), 2**50, count)
    x = (mean >> FRACTION) + np.rint(rng.normal(0, spread * std, count)).astype(np.int64)
    assert_law(lambda: Gaussian(mean, std), x, seed=seed)


def test_gaussian_far_out():
    x = np.array([0, 10**9, -(10**9), 37, -37, 36, -36])
    assert_law(lambda: Gaussian(np.zeros(7, np.int64), 4.0), x)
    with pytest.raises(OverflowError, match="further from its mean"):
        Gaussian(np.zeros(1, np.int64), 4.0).push(message(), np.array([2**31]))
    with pytest.raises(ValueError, match="fewer steps"):
        Gaussian(np.zeros(1, np.int64), 5000.0)


@given(SEEDS, st.floats(0.2, 500), st.integers(1, 300))
@settings(deadline=None)
def test_noise_law_both_ways(seed, std, count):
    rng = np.random.default_rng(seed)
    mean = rng.integers(-(2**50), 2**50, count)
    m = message(seed=seed)
    before = m._coder.get_compressed().copy()
    noise = Noise(mean, std, key=seed)
    x = noise.pop(m)
    noise.push(m, x)
    assert np.array_equal(m._coder.get_compressed(), before)
    noise.push(m, x)
    assert np.array_equal(noise.pop(m), x) and np.array_equal(m._coder.get_compressed(), before)


def test_noise_is_gaussian_whatever_lies_on_the_stack():
    mean = np.random.default_rng(1).integers(-(2**40), 2**40, 20_000)
    for words in (np.zeros(30_000, np.uint32), np.full(30_000, 0xFFFFFFFF, np.uint32)):
        d = (Noise(mean, 4.0, key=3).pop(Message(words)) - mean * 2.0**-FRACTION) / math.sqrt(
            4.0**2 + 1 / 12
        )
        assert abs(d.mean()) < 5 / math.sqrt(20_000) and abs(d.var() - 1) < 5 * math.sqrt(
            2 / 20_000
        )
        assert abs(np.corrcoef(d[1:], d[:-1])[0, 1]) < 5 / math.sqrt(20_000)


def test_noise_refuses_what_it_cannot_have_drawn():
    with pytest.raises(OverflowError, match="cannot have been drawn"):
        Noise(np.zeros(2, np.int64), 4.0, 0).push(message(), np.array([0, 60]))


@given(SEEDS, st.sampled_from([1, 2, 4]), st.floats(0.02, 3.0), st.integers(1, 200))
@settings(deadline=None)
def test_progressions_law_and_only_allowed_integers(seed, step, tau, count):
    rng = np.random.default_rng(seed)
    low, last = rng.integers(-1000, 1000, count), rng.integers(0, 50, count)
    x = low + step * rng.integers(0, last + 1)
    centre = np.rint((x + np.clip(rng.normal(size=count), -5, 5) * tau) * 2**FRACTION).astype(
        np.int64
    )

    def make():
        return Progressions(centre, tau, low, last, step)

    assert_law(make, x, seed=seed)
    drawn = make().pop(message(seed=seed))
    assert ((drawn >= low) & (drawn <= low + step * last) & ((drawn - low) % step == 0)).all()


def test_progressions_cost_what_the_lattice_decoder_says():
    from pcdm_lib.maps.lattice import Progression, log_prob

    rng = np.random.default_rng(0)
    low, last = np.zeros(5000, np.int64), np.full(5000, 40)
    x = rng.integers(0, 41, 5000)
    for tau in (0.15, 0.5):
        centre = np.rint((x + tau * rng.normal(size=5000)) * 2**FRACTION).astype(np.int64)
        found = Progressions(centre, tau, low, last, 1)
        exact = log_prob(
            torch.from_numpy(centre * 2.0**-FRACTION),
            torch.tensor(tau, dtype=torch.float64),
            torch.from_numpy(x),
            Progression(torch.from_numpy(low), torch.from_numpy(low + last), 1),
        )
        expected = float(-exact.sum()) / math.log(2)
        m = message(100)
        before = m.bits
        found.push(m, x)
        assert abs(found.bits(x).sum() - expected) < 0.02 * expected + 1
        assert abs(m.bits - before - expected) < 0.02 * expected + 2


def test_too_much_noise_at_the_start_is_refused():
    with pytest.raises(ValueError, match="lower gamma_min"):
        Progressions(np.zeros(1, np.int64), 200.0, np.zeros(1, np.int64), np.full(1, 255), 1)


# ---------------------------------------------------------------- bits back


class Nothing:
    """The codec of what is certain."""

    def push(self, message, x):
        pass

    def pop(self, message):
        return 0


def test_a_posterior_that_is_the_prior_costs_exactly_nothing():
    mean = np.random.default_rng(0).integers(-(2**40), 2**40, 500)
    noise = Noise(mean, 5.0, key=1)
    cheat = BitsBack(0, lambda x: noise, lambda z: Nothing(), None, None, noise)
    m = message()
    before, bits = m._coder.get_compressed().copy(), m.bits
    cheat.push(m, 0)
    assert m.bits == bits and np.array_equal(m._coder.get_compressed(), before)


def test_a_chain_that_forgets_costs_nothing():
    def gaussian(k, cls=Gaussian, *key):
        return cls(np.random.default_rng(k).integers(-(2**40), 2**40, 2000), 5.0 + k, *key)

    cheat = BitsBack(
        6,
        lambda x: gaussian(0, Noise, 0),
        lambda z: Nothing(),
        lambda k, z: gaussian(k, Noise, k),
        lambda k, z: gaussian(k - 1),
        gaussian(6),
    )
    m = message()
    bits = m.bits
    cheat.push(m, 0)
    assert abs(m.bits - bits) <= 2  # of the 7 * 2000 symbols popped and pushed, some 60,000 bits
    assert_law(lambda: cheat, 0)


# ---------------------------------------------------------------- the chain of a diffusion


@pytest.mark.parametrize(
    "schedule", [LinearSchedule(), FittedSchedule(-13.3, 5.0), MonotoneSchedule()]
)
@pytest.mark.parametrize("steps", [2, 50, 1000])
def test_the_grid_is_that_of_the_densities(schedule, steps):
    if isinstance(schedule, FittedSchedule):
        schedule.fit(torch.linspace(1.0, 0.0, schedule.bins) ** 2)
    grid = TimeGrid.of(schedule, steps)
    gamma = schedule.double()(torch.arange(steps + 1, dtype=torch.float64) / steps)
    alpha, sigma = alpha_sigma(gamma.detach())
    forward = alpha[1:] / alpha[:-1]
    spacing = torch.tensor(grid.spacing, dtype=torch.float64)
    variance = sigma[1:] ** 2 - (forward * sigma[:-1]) ** 2
    assert torch.allclose(
        torch.tensor(grid.forward_std[1:], dtype=torch.float64) * spacing[1:],
        variance.sqrt(),
        rtol=1e-4,
    )
    assert torch.allclose(
        torch.tensor(grid.forward[1:], dtype=torch.float64) * 2.0**-FRACTION,
        forward * spacing[:-1] / spacing[1:],
        rtol=1e-6,
    )
    reverse = sigma[:-1] * torch.sqrt(-torch.expm1(gamma[:-1] - gamma[1:])).detach()
    assert torch.allclose(
        torch.tensor(grid.reverse_std[:-1], dtype=torch.float64) * spacing[:-1], reverse, rtol=1e-4
    )
    # no Gaussian is narrower than the grid allows
    assert min(*grid.forward_std, *grid.reverse_std) >= 1 / bits_back.FINENESS - 1e-3


@pytest.mark.parametrize("steps", [0, 1, 65536, True, 2.0])
def test_steps_that_no_chain_has(steps):
    with pytest.raises(ValueError, match="2 to 65535 steps"):
        TimeGrid.of(LinearSchedule(), steps)


def test_a_fineness_that_no_grid_has():
    with pytest.raises(ValueError, match="fineness"):
        TimeGrid.of(LinearSchedule(), 10, fineness=2.0)


def linear_denoiser(variance: float):
    """The exact posterior mean for independent Gaussian coordinates of that variance."""

    def denoiser(z, gamma, coarse):
        alpha, sigma = alpha_sigma(gamma.reshape(-1, 1, 1, 1))
        return sigma * z / (alpha**2 * variance + sigma**2)

    return denoiser


@pytest.mark.parametrize(
    "hierarchy", [Identity(), HaarWavelet(1), HaarWavelet(2), LaplacianPyramid(1)]
)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7), (3, 1, 1), (1, 6, 1)])
def test_tile_law(hierarchy, shape):
    scales = TileScales(hierarchy, shape)
    predictors = [Predictor(linear_denoiser(0.1)) for _ in scales.specs]
    grids = [
        TimeGrid.of(LinearSchedule(gamma_for_spacing(spec, 0.15), 5.0), 6) for spec in scales.specs
    ]
    x = grey(0, 2, *shape)
    assert_law(lambda: TileCodec(scales, predictors, grids, 2), x)


@pytest.mark.parametrize("value", ["zeros", "full", "checkerboard", "one pixel"])
def test_tile_law_for_extremes(value):
    x = torch.zeros((1, 3, 8, 8), dtype=torch.int32)
    if value == "full":
        x += 255
    elif value == "checkerboard":
        x[..., ::2, ::2] = x[..., 1::2, 1::2] = 255
    elif value == "one pixel":
        x[0, 1, 3, 4] = 1
    scales = TileScales(HaarWavelet(2), (3, 8, 8))
    # a model that is sure of something else: escapes
    predictors = [Predictor(linear_denoiser(1e-3)) for _ in scales.specs]
    grids = [
        TimeGrid.of(LinearSchedule(gamma_for_spacing(spec, 0.15), 5.0), 4) for spec in scales.specs
    ]
    assert_law(lambda: TileCodec(scales, predictors, grids, 1), x)


def gaussian_images(count: int, std: float = 30.0) -> torch.Tensor:
    values = 127.5 + std * np.random.default_rng(0).normal(size=(count, 3, 32, 32))
    return torch.from_numpy(np.clip(np.rint(values), 0, 255).astype(np.int32))


def net_and_bound(
    count: int, steps: int, fineness: float = bits_back.FINENESS
) -> tuple[float, float]:
    """Bits a dimension on the stack, and the T-step bound in closed form, of one scale with the
    linear denoiser."""
    x, schedule = gaussian_images(count), LinearSchedule()
    scales = TileScales(Identity(), (3, 32, 32))
    variance = (30 / 127.5) ** 2
    m = message(count * 3072 // 2)
    before = m.bits
    spent = TileCodec(
        scales,
        [Predictor(linear_denoiser(variance), batch=count)],
        [TimeGrid.of(schedule, steps, fineness)],
        count,
    ).push(m, x)["base"]
    y = scales.specs[0].to_float(x, torch.float64)
    gamma = schedule.double()(torch.arange(steps + 1, dtype=torch.float64) / steps)
    alpha, sigma = alpha_sigma(gamma)
    power = float(y.square().mean())
    error = ((alpha**2 * variance) ** 2 + (alpha * sigma) ** 2 * power) / (
        alpha**2 * variance + sigma**2
    ) ** 2
    diffusion = float((torch.expm1(gamma[1:] - gamma[:-1]) * error[1:]).sum()) / 2
    last = float(alpha[-1] ** 2)
    prior = last * power / 2 - (last + math.log1p(-last)) / 2
    data = float(spent.bits[0].sum()) / (count * 3072)
    return (m.bits - before) / (count * 3072), (diffusion + prior) / math.log(2) + data


@pytest.mark.parametrize("steps,count", [(50, 32), (200, 16), (1000, 4)])
def test_the_stack_grows_by_the_bound(steps, count):
    net, bound = net_and_bound(count, steps)
    assert abs(net / bound - 1) < 0.005  # standard error at most 0.001


def test_bits_that_are_not_scrambled_cost_several_per_cent(monkeypatch):
    """What `Noise` is for: the same without it, where each latent's noise is the last one's
    deviation over again."""
    monkeypatch.setattr(Message, "scramble", lambda self, count, key: None)
    net, bound = net_and_bound(16, 50, fineness=0.2)
    assert net / bound > 1.04


@pytest.mark.parametrize("fineness", [0.1, 1.0])
def test_the_grid_costs_next_to_nothing(fineness):
    net, bound = net_and_bound(32, 50, fineness)
    assert net / bound - 1 < 0.003


def test_an_oracle_pays_for_the_start_and_the_end_only():
    """eps_hat that knows the image: the diffusion term is zero, and so is what it adds to the
    stack."""
    x, schedule = gaussian_images(8), LinearSchedule()
    scales = TileScales(Identity(), (3, 32, 32))
    y = scales.specs[0].to_float(x, torch.float64)

    def oracle(z, gamma, coarse):
        alpha, sigma = alpha_sigma(gamma.reshape(-1, 1, 1, 1))
        return (z - alpha * y) / sigma

    m = message(20_000)
    before = m.bits
    TileCodec(scales, [Predictor(oracle)], [TimeGrid.of(schedule, 50)], 8).push(m, x)
    # of 12 bits a sample that went through the stack at each of 50 steps
    assert abs(m.bits - before) / x.numel() < 0.03


@pytest.mark.parametrize("hierarchy", [Identity(), HaarWavelet(1), LaplacianPyramid(1)])
def test_no_file_is_shorter_than_the_entropy(hierarchy):
    source = example_source()
    x = source.images[source.draw(4000, torch.Generator().manual_seed(0))]
    specs = hierarchy.specs(source.image_shape, source.max_value)
    scales = TileScales(hierarchy, source.image_shape, source.max_value)
    denoisers = [ExactDenoiser(source, hierarchy, spec) for spec in specs]
    grids = [
        TimeGrid.of(LinearSchedule(gamma_for_spacing(spec, 0.166), 8.0), 100) for spec in specs
    ]
    m = message(20_000)
    before = m.bits
    TileCodec(scales, [Predictor(d, batch=4000) for d in denoisers], grids, 4000).push(m, x)
    bpd = (m.bits - before) / x.numel()
    # 100 steps; standard error about 0.009
    assert source.entropy_bits_per_dim - 0.03 < bpd < source.entropy_bits_per_dim + 0.12
    received = Message(m.finished(), sealed=False)
    assert torch.equal(
        TileCodec(scales, [Predictor(d, batch=999) for d in denoisers], grids, 4000).pop(received),
        x,
    )


def test_a_network_that_fails_is_an_error():
    scales = TileScales(Identity(), (1, 4, 4))
    broken = Predictor(lambda z, gamma, coarse: z * float("nan"))
    with pytest.raises(FloatingPointError, match="weights are broken"):
        TileCodec(scales, [broken], [TimeGrid.of(LinearSchedule(), 4)], 1).push(
            message(), grey(0, 1, 1, 4, 4)
        )


def test_levels_beyond_the_fixed_point_are_refused():
    spec = HaarWavelet(8).specs((1, 256, 256))[0]
    with pytest.raises(ValueError, match="fewer levels"):
        ScaleCodec(
            spec,
            None,
            TimeGrid.of(LinearSchedule(gamma_for_spacing(spec, 0.01), 5.0), 1000),
            None,
            1,
        )
