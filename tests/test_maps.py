"""The maps: exact inverses, volume, an oracle for the wavelet, and integers that say the same as
the floats."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdm_lib import maps
from pcdm_lib.maps import (
    HaarWavelet,
    HierarchicalMap,
    Identity,
    LaplacianPyramid,
    Scales,
    Subsampling,
    haar,
    make_map,
)

# Every map at S = 1..4 scales, and the two volume-preserving ones with something to transform.
ALL = [
    *(kind(levels) for kind in (HaarWavelet, LaplacianPyramid, Subsampling) for levels in range(4)),
    Identity(),
]
FRAMES = [kind(levels) for kind in (HaarWavelet, LaplacianPyramid) for levels in (1, 2, 3)]
SHAPES = [
    (1, 2, 2),
    (3, 2, 6),
    (3, 4, 4),
    (1, 8, 16),
    (3, 24, 8),
    (3, 32, 32),
    (1, 64, 40),
    (3, 128, 128),
]
CASES = [
    pytest.param(m, shape, id=f"{m.name}{m.num_scales}-{'x'.join(map(str, shape))}")
    for m in ALL
    for shape in SHAPES
    if not (shape[1] % 2**m.levels or shape[2] % 2**m.levels)
]
FRAME_CASES = [case for case in CASES if isinstance(case.values[0], HaarWavelet)]


def images(shape: tuple[int, int, int], n: int = 2, max_value: int = 255, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, max_value + 1, (n, *shape), generator=generator, dtype=torch.int32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scaled(x: Tensor, max_value: int = 255) -> Tensor:
    """Pixels 0..max_value as float64 in [-1, 1]."""
    return x.double() * (2 / max_value) - 1


def jacobian(m: HierarchicalMap, shape: tuple[int, int, int]) -> Tensor:
    """Matrix of the (linear) map, one column an image with a single one in it: (latent entries,
    pixels)."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return torch.cat([v.flatten(1) for v in m.analyse(basis)], dim=1).T


def hard_images(height: int, width: int) -> dict[str, Tensor]:
    board = torch.arange(height)[:, None] + torch.arange(width) & 1
    point = torch.zeros(height, width, dtype=torch.int64)
    point[-1, 0] = 1
    noise = images((1, height, width), 1)[0, 0]
    grey = {
        "board": board * 255,
        "black": board * 0,
        "white": board * 0 + 255,
        "noise": noise,
        "point": point * 255,
    }
    return {name: x.to(torch.uint8).expand(1, 3, height, width) for name, x in grey.items()}


# ---- there and back


@pytest.mark.parametrize(("m", "shape"), CASES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:]
)
def test_floats_come_back(
    m: HierarchicalMap, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    x = scaled(images(shape)).to(dtype)
    back = m.synthesise(m.analyse(x))
    assert back.dtype == dtype and back.shape == x.shape
    # a sum of four rounds relative to the largest coefficient, and undoing it adds three such
    # errors a level
    assert (back - x).abs().max() <= 4 * m.levels * torch.finfo(dtype).eps


@pytest.mark.parametrize(("m", "shape"), CASES)
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int32, torch.int64, torch.uint16], ids=lambda d: str(d)[6:]
)
def test_integers_come_back_exactly(
    m: HierarchicalMap, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    x = images(shape)
    scales = m.analyse_integers(x.to(dtype))
    assert all(z.dtype == torch.int32 for z in scales)
    assert torch.equal(m.synthesise_integers(scales), x)


@pytest.mark.parametrize("m", ALL, ids=repr)
@pytest.mark.parametrize("name", hard_images(8, 16))
def test_hard_images(m: HierarchicalMap, name: str) -> None:
    x = hard_images(8, 16)[name]
    assert torch.equal(m.synthesise_integers(m.analyse_integers(x)), x.to(torch.int32))
    assert (m.synthesise(m.analyse(scaled(x))) - scaled(x)).abs().max() < 1e-14


def test_a_checkerboard_is_all_diagonal_and_a_constant_all_base() -> None:
    bands = dict(HaarWavelet(3).analyse_integers(hard_images(8, 8)["board"]).items())
    p, q, r = bands["details1"].chunk(3, dim=1)
    assert (p == 0).all() and (q == 0).all() and (r == -510).all()
    assert (
        (bands["details2"] == 0).all()
        and (bands["details3"] == 0).all()
        and (bands["base"] == 32 * 255).all()
    )
    base, *details = HaarWavelet(3).analyse_integers(hard_images(8, 8)["white"])
    assert (base == 64 * 255).all() and all((z == 0).all() for z in details)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(sorted(maps.MAPS)),
    levels=st.integers(0, 4),
    cells=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.integers(1, 4),
    max_value=st.sampled_from([1, 3, 255, 4095, 65535]),
    seed=st.integers(0, 2**31),
    extremes=st.booleans(),
)
def test_any_integers_come_back(name, levels, cells, channels, max_value, seed, extremes) -> None:
    m = make_map(name, 0 if name == "vdm" else levels)
    x = images((channels, cells[0] << m.levels, cells[1] << m.levels), 2, max_value, seed)
    if extremes:  # 0 and the largest value alone reach the corners of every range
        x = torch.where(x > max_value // 2, max_value, 0).to(torch.int32)
    scales = m.analyse_integers(x, max_value)
    for spec, z in zip(m.specs(tuple(x.shape[1:]), max_value), scales):
        assert tuple(z.shape[1:]) == spec.shape
        high = max_value * (1 if spec.kind == "pixels" else 4**spec.level)
        assert z.abs().max() <= (high // 2 if spec.kind == "details" else high)
    assert torch.equal(m.synthesise_integers(scales), x)


# ---- by hand


def test_one_block_by_hand() -> None:
    block = torch.tensor([[[[10, 20], [30, 44]]]])
    base, details = HaarWavelet(1).analyse_integers(block)
    assert base.flatten().tolist() == [104]  # 10 + 20 + 30 + 44
    # rows 30 - 74, columns 40 - 64, diagonals 54 - 50
    assert details.flatten().tolist() == [-44, -24, 4]
    base, details = HaarWavelet(1).analyse(block.double())
    assert base.flatten().tolist() == [52] and details.flatten().tolist() == [-22, -12, 2]
    base, residual = LaplacianPyramid(1).analyse(block.double())
    # less the mean, 26
    assert base.flatten().tolist() == [52] and residual.flatten().tolist() == [-16, -6, 4, 18]
    base, whole = Subsampling(1).analyse_integers(block)
    assert base.flatten().tolist() == [10] and torch.equal(whole, block.to(torch.int32))


def test_two_levels_by_hand() -> None:
    ramp = torch.arange(16).reshape(1, 1, 4, 4)
    scales = HaarWavelet(2).analyse_integers(ramp)
    assert scales["base"].flatten().tolist() == [120]
    # of the block sums (10 18 / 42 50)
    assert scales["details2"].flatten().tolist() == [-64, -16, 0]
    assert scales["details1"].flatten().tolist() == [-8] * 4 + [-2] * 4 + [0] * 4
    floats = HaarWavelet(2).analyse(ramp.double())
    assert floats["base"].item() == 30 and floats["details2"].flatten().tolist() == [-16, -4, 0]


def test_the_bands_of_a_channel_stay_together() -> None:
    """Coordinates are band-major: all channels of p, then of q, then of r."""
    x = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    x[0, 1] = torch.tensor([[1, 1], [0, 0]])  # rows differ, in the middle channel alone
    spec = HaarWavelet(1).specs((3, 2, 2))[1]
    bands = spec.split(HaarWavelet(1).analyse_integers(x)[1])
    assert [bands[name].flatten().tolist() for name in "pqr"] == [[0, 2, 0], [0, 0, 0], [0, 0, 0]]


# ---- volume


@pytest.mark.parametrize("m", FRAMES, ids=repr)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 8, 16)], ids=str)
def test_singular_values_of_a_volume_preserving_map_are_one(
    m: HierarchicalMap, shape: tuple[int, int, int]
) -> None:
    j = jacobian(m, shape)
    assert j.shape[1] == math.prod(shape) and j.shape[0] == sum(
        math.prod(s.view_shape) for s in m.specs(shape)
    )
    assert (torch.linalg.svdvals(j) - 1).abs().max() < 1e-12
    assert m.volume_preserving and m.log_volume(shape) == 0
    assert sum(spec.dims for spec in m.specs(shape)) == math.prod(shape)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 16)], ids=str)
def test_the_standard_cascade_pays_twice(levels: int, shape: tuple[int, int, int]) -> None:
    m = Subsampling(levels)
    j = jacobian(m, shape)
    counted = torch.linalg.svdvals(j).square().round().int().bincount(minlength=levels + 2)
    d = math.prod(shape)
    # a pixel on the grid of step 2^k, and on none coarser, is kept k + 1 times
    assert counted.tolist() == [
        0,
        *(d // 4**k - d // 4 ** (k + 1) for k in range(levels)),
        d // 4**levels,
    ]
    assert not m.volume_preserving
    assert m.log_volume(shape) == pytest.approx(0.5 * torch.logdet(j.T @ j).item(), rel=1e-12)


def test_no_map_changes_the_volume_at_one_scale() -> None:
    assert Subsampling(0).log_volume((3, 8, 8)) == Identity().log_volume((3, 8, 8)) == 0


@pytest.mark.parametrize(("m", "shape"), FRAME_CASES)
def test_energy_is_kept(m: HierarchicalMap, shape: tuple[int, int, int]) -> None:
    x = normal(2, *shape)
    energy = sum(v.square().flatten(1).sum(1) for v in m.analyse(x))
    assert torch.allclose(energy, x.square().flatten(1).sum(1), rtol=1e-12)


def test_the_standard_cascade_adds_energy() -> None:
    x = normal(1, 1, 16, 16)
    assert sum(v.square().sum() for v in Subsampling(2).analyse(x)) > 1.1 * x.square().sum()


# ---- the wavelet against PyWavelets


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 24), (3, 64, 32), (1, 128, 128)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_pywavelets(levels: int, shape: tuple[int, int, int], dtype: type) -> None:
    x = normal(2, *shape, seed=levels).numpy().astype(dtype)
    base, *details = HaarWavelet(levels).analyse(torch.from_numpy(x))
    oracle_base, *oracle = pywt.wavedec2(
        x, "haar", mode="periodization", level=levels, axes=(-2, -1)
    )
    tolerance = {"rtol": 0, "atol": 2**levels * 8 * np.finfo(dtype).eps}
    np.testing.assert_allclose(base.numpy(), oracle_base, **tolerance)
    for ours, (rows, columns, diagonals) in zip(details, oracle, strict=True):
        assert ours.numpy().dtype == dtype
        np.testing.assert_allclose(
            ours.numpy(), np.concatenate([rows, columns, diagonals], axis=1), **tolerance
        )


# ---- integers and floats say the same


@pytest.mark.parametrize(("m", "shape"), CASES)
@pytest.mark.parametrize("max_value", [3, 255, 65535])
def test_integers_agree_with_floats(
    m: HierarchicalMap, shape: tuple[int, int, int], max_value: int
) -> None:
    x = images(shape, max_value=max_value)
    floats = m.analyse(scaled(x, max_value))
    integers = m.analyse_integers(x, max_value)
    assert floats.names == integers.names == m.names()
    for spec, z, f in zip(m.specs(shape, max_value), integers, floats):
        view = m.to_view(spec, spec.to_float(z, torch.float64))
        assert tuple(view.shape[1:]) == spec.view_shape and view.dtype == torch.float64
        assert torch.allclose(view, f, rtol=0, atol=1e-12)
    assert spec.to_float(z).dtype == torch.float32


@pytest.mark.parametrize(("m", "shape"), CASES)
def test_each_scale_refines_the_coarser_ones(
    m: HierarchicalMap, shape: tuple[int, int, int]
) -> None:
    x = images(shape)
    coarse = None
    for index, (z, given_coarse) in enumerate(m.decompose(x)):
        assert (coarse is None) == (given_coarse is None) and (
            coarse is None or torch.equal(coarse, given_coarse)
        )
        coarse = m.refine(index, coarse, z)
    assert torch.equal(coarse, x)


@pytest.mark.parametrize("kind", [HaarWavelet, LaplacianPyramid])
def test_exactly_the_allowed_integers_belong_to_images(kind: type[HaarWavelet]) -> None:
    """On 2x2 blocks with 4 levels: as many allowed (s, p, q, r) as images, and every other tuple is
    refused."""
    m = kind(1)
    x = torch.tensor(list(itertools.product(range(4), repeat=4))).reshape(-1, 1, 2, 2)
    found = torch.cat([z.flatten(1) for z in m.analyse_integers(x, 3)], dim=1)
    assert len({tuple(row) for row in found.tolist()}) == 256
    box = torch.cartesian_prod(torch.arange(13), *[torch.arange(-6, 7)] * 3)
    s, p, q, r = box.T
    congruent = ((s - p) % 2 == 0) & ((s - q) % 2 == 0) & ((s + p + q + r) % 4 == 0)
    z = box[congruent].to(torch.int32)
    back = m.synthesise_integers(Scales(m.names(), [z[:, :1, None, None], z[:, 1:, None, None]]))
    inside = ((back >= 0) & (back <= 3)).flatten(1).all(1)
    assert {tuple(row) for row in z[inside].tolist()} == {tuple(row) for row in found.tolist()}


def test_integers_of_no_image_are_refused() -> None:
    m = HaarWavelet(1)
    # the congruences depend on residues modulo 4 alone
    for s, p, q, r in itertools.product(range(4), repeat=4):
        z = torch.tensor([s, p, q, r], dtype=torch.int32).reshape(1, 4, 1, 1)
        scales = Scales(m.names(), [z[:, :1], z[:, 1:]])
        if (s - p) % 2 or (s - q) % 2 or (s + p + q + r) % 4:
            with pytest.raises(
                ValueError, match="belong to no image.*decode them with pcdm_lib.maps.lattice"
            ):
                m.synthesise_integers(scales)
        else:
            m.synthesise_integers(scales)


# ---- the pyramid's frame


@pytest.mark.parametrize("m", ALL, ids=repr)
def test_from_view_is_the_transpose_of_to_view(m: HierarchicalMap) -> None:
    for spec in m.specs((3, 8, 16)):
        coords, view = normal(2, *spec.shape), normal(2, *spec.view_shape, seed=1)
        shown = m.to_view(spec, coords)
        assert shown.shape == view.shape
        assert torch.allclose(
            (shown * view).sum(), (coords * m.from_view(spec, view)).sum(), rtol=1e-12
        )
        assert torch.allclose(m.from_view(spec, shown), coords, rtol=0, atol=1e-14)
        # an isometry
        assert torch.allclose(shown.square().sum(), coords.square().sum(), rtol=1e-12)


def test_the_residual_is_the_projection_on_the_details() -> None:
    x = normal(2, 3, 16, 8)
    wavelet, pyramid = HaarWavelet(2), LaplacianPyramid(2)
    details, residuals = wavelet.analyse(x), pyramid.analyse(x)
    assert torch.equal(details[0], residuals[0])
    for spec, d, y in zip(pyramid.specs((3, 16, 8))[1:], details.values[1:], residuals.values[1:]):
        assert torch.allclose(pyramid.to_view(spec, d), y, rtol=0, atol=1e-14)
        # P P = P
        assert torch.allclose(
            pyramid.to_view(spec, pyramid.from_view(spec, y)), y, rtol=0, atol=1e-14
        )
        assert torch.nn.functional.avg_pool2d(y, 2).abs().max() < 1e-14
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(m.analyse_integers(images((3, 16, 8))) for m in (wavelet, pyramid)))
    )


def test_what_lies_outside_the_frame_is_projected_away() -> None:
    m, x = LaplacianPyramid(2), normal(1, 3, 16, 16)
    base, *residuals = m.analyse(x)
    moved = [
        y + haar.upsample(normal(1, 3, y.shape[-2] // 2, y.shape[-1] // 2, seed=7))
        for y in residuals
    ]
    assert torch.allclose(m.synthesise(Scales(m.names(), [base, *moved])), x, rtol=0, atol=1e-13)


# ---- what networks are shown


@pytest.mark.parametrize(
    ("m", "channels"),
    [(HaarWavelet(3), 12), (LaplacianPyramid(3), 6), (Subsampling(3), 6)],
    ids=str,
)
def test_condition_images(m: HierarchicalMap, channels: int) -> None:
    """Eqs. 43-44: the image rebuilt from the coarser scales, at the view's resolution, concatenated
    channel-wise."""
    x = images((3, 16, 32))
    specs = m.specs((3, 16, 32))
    assert specs[0].condition_shape is None
    for spec, (_, coarse) in list(zip(specs, m.decompose(x)))[1:]:
        shown = m.condition_image(spec, coarse)
        assert (
            tuple(shown.shape[1:]) == spec.condition_shape
            and shown.dtype == torch.get_default_dtype()
        )
        assert spec.view_shape[0] + spec.condition_shape[0] == channels
        assert spec.view_shape[1:] == spec.condition_shape[1:]
        assert shown.min() >= -1 and shown.max() <= 1
        if m.volume_preserving:
            expected = torch.nn.functional.avg_pool2d(scaled(x), 2**spec.level)
        else:
            expected = scaled(x)[..., :: 2 ** (spec.level + 1), :: 2 ** (spec.level + 1)]
        if expected.shape != shown.shape:
            expected = haar.upsample(expected)
        assert torch.allclose(shown.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("m", ALL, ids=repr)
def test_brightness_is_the_rebuilt_image_in_0_to_1(m: HierarchicalMap) -> None:
    x = images((3, 16, 8))
    coarse = None
    for index, (z, _) in enumerate(m.decompose(x)):
        coarse = m.refine(index, coarse, z)
        side = 2 ** (m.levels - index)
        seen = m.brightness(index, coarse)
        mean = (
            torch.nn.functional.avg_pool2d(x.double() / 255, side)
            if m.volume_preserving
            else x[..., ::side, ::side] / 255
        )
        assert torch.allclose(seen.double(), mean.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("m", ALL, ids=repr)
def test_lattice_phase_is_whole_where_an_image_could_be(m: HierarchicalMap) -> None:
    x = images((3, 16, 8))
    for spec, (z, coarse) in zip(m.specs((3, 16, 8)), m.decompose(x)):
        phase, factor = m.lattice_phase(spec, z.double(), coarse)
        assert tuple(phase.shape[1:]) == (m.phase_channels(spec), *spec.view_shape[1:])
        assert torch.equal(phase, phase.round())
        finer = m.refine(spec.index, coarse, z)  # the same values, perhaps in another order
        assert torch.equal(phase.flatten(1).sort().values, finer.double().flatten(1).sort().values)
        noise = 0.01 * normal(*z.shape)
        moved, _ = m.lattice_phase(spec, z.double() + noise, coarse)
        assert (moved - phase).std() / noise.std() == pytest.approx(factor, rel=0.1)
        if spec.kind == "details":  # one step off the lattice shows
            moved, _ = m.lattice_phase(spec, z.double() + 1, coarse)
            assert not torch.equal(moved, moved.round())


# ---- names and containers


def test_names_are_coarsest_first() -> None:
    assert HaarWavelet(3).names() == ("base", "details3", "details2", "details1")
    assert LaplacianPyramid(2).names() == ("base", "residual2", "residual1")
    assert Subsampling(2).names() == ("base", "image1", "image0")
    assert Identity().names() == HaarWavelet(0).names() == ("base",)
    for m in ALL:
        sizes = [math.prod(spec.view_shape) for spec in m.specs((3, 8, 8))]
        assert sizes == sorted(sizes) and len(sizes) == m.num_scales
        assert [spec.index for spec in m.specs((3, 8, 8))] == list(range(m.num_scales))


def test_scales_go_by_index_and_by_name() -> None:
    scales = HaarWavelet(1).analyse(normal(1, 1, 4, 4))
    assert scales["base"] is scales[0] and scales["details1"] is scales[-1] and len(scales) == 2
    doubled = scales.apply(lambda v: 2 * v)
    assert doubled.names == scales.names and torch.equal(doubled[1], 2 * scales[1])
    assert [name for name, _ in scales.items()] == ["base", "details1"]
    assert "details1: (1, 3, 2, 2) torch.float64" in repr(scales)
    with pytest.raises(ValueError, match="1 names for 2 arrays"):
        Scales(("base",), scales.values)


def test_make_map() -> None:
    assert repr(make_map("laplacian", 2)) == "LaplacianPyramid(levels=2)"
    with pytest.raises(
        ValueError, match="unknown map 'haar': one of wavelet, laplacian, standard, vdm"
    ):
        make_map("haar", 1)


# ---- errors say what was wrong, what was expected and what to do

WAVELET, U8 = HaarWavelet(1), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
FLOATS, INTEGERS = WAVELET.analyse(U8.float()), WAVELET.analyse_integers(U8)
ERRORS = {
    "sides": (
        lambda: HaarWavelet(3).analyse(torch.zeros(1, 3, 36, 32)),
        ValueError,
        r"HaarWavelet\(levels=3\) needs sides divisible by 8, got 36x32: crop or pad the image",
    ),
    "sides of integers": (
        lambda: LaplacianPyramid(2).analyse_integers(U8[..., :2]),
        ValueError,
        "divisible by 4, got 4x2",
    ),
    "sides of specs": (
        lambda: Subsampling(1).specs((3, 4, 5)),
        ValueError,
        "divisible by 2, got 4x5",
    ),
    "integers to analyse": (
        lambda: WAVELET.analyse(U8),
        TypeError,
        "wants floats, got torch.uint8: use analyse_integers",
    ),
    "floats to analyse_integers": (
        lambda: WAVELET.analyse_integers(U8.float()),
        TypeError,
        "integers wanted, got torch.float32",
    ),
    "bool": (
        lambda: WAVELET.analyse_integers(U8.bool()),
        TypeError,
        "integers wanted, got torch.bool",
    ),
    "complex": (
        lambda: WAVELET.analyse_integers(U8.cfloat()),
        TypeError,
        "integers wanted, got torch.complex64",
    ),
    "negative": (
        lambda: WAVELET.analyse_integers(U8.to(torch.int16) - 3),
        ValueError,
        r"lie in 0..255, got -3..-3",
    ),
    "too large": (
        lambda: WAVELET.analyse_integers(U8.int() + 256),
        ValueError,
        r"lie in 0..255, got 256..256",
    ),
    "too large for max_value": (
        lambda: WAVELET.analyse_integers(U8 + 4, 3),
        ValueError,
        r"lie in 0..3, got 4..4",
    ),
    "max_value": (
        lambda: WAVELET.analyse_integers(U8, 0),
        ValueError,
        r"max_value must lie in 1..65535, got 0",
    ),
    "three axes": (
        lambda: WAVELET.analyse(torch.zeros(3, 4, 4)),
        ValueError,
        r"batch \(N, C, H, W\), got 3 dimensions",
    ),
    "five axes": (lambda: WAVELET.analyse_integers(U8[None]), ValueError, r"got 5 dimensions"),
    "empty": (
        lambda: WAVELET.analyse_integers(U8[:0]),
        ValueError,
        r"the batch is empty: \(0, 3, 4, 4\)",
    ),
    "numpy": (
        lambda: WAVELET.analyse_integers(U8.numpy()),
        TypeError,
        "got ndarray: use torch.from_numpy",
    ),
    "shape of specs": (lambda: WAVELET.specs((4, 4)), ValueError, "image_shape must be"),
    "overflow of specs": (
        lambda: HaarWavelet(7).specs((1, 128, 128), 65535),
        ValueError,
        "would overflow 32-bit integers",
    ),
    "overflow": (
        lambda: HaarWavelet(7).analyse_integers(torch.full((1, 1, 128, 128), 65535), 65535),
        ValueError,
        "would overflow 32-bit integers: use fewer levels",
    ),
    "scales of another map": (
        lambda: LaplacianPyramid(1).synthesise(FLOATS),
        ValueError,
        r"has the scales \('base', 'residual1'\), got \('base', 'details1'\)",
    ),
    "scales of another depth": (
        lambda: HaarWavelet(2).synthesise_integers(INTEGERS),
        ValueError,
        "has the scales",
    ),
    "a list of scales": (
        lambda: WAVELET.synthesise(list(FLOATS)),
        ValueError,
        "has the scales .* got <class 'list'>",
    ),
    "a base that would broadcast": (
        lambda: WAVELET.synthesise(Scales(FLOATS.names, [FLOATS[0][..., :1, :1], FLOATS[1]])),
        ValueError,
        r"details1 must have the shape \(1, 9, 1, 1\)",
    ),
    "a band missing": (
        lambda: WAVELET.synthesise_integers(
            Scales(FLOATS.names, [INTEGERS[0], INTEGERS[1][:, :6]])
        ),
        ValueError,
        r"details1 must have the shape \(1, 9, 2, 2\) .* got \(1, 6, 2, 2\)",
    ),
    "scales without a batch": (
        lambda: WAVELET.synthesise(FLOATS.apply(lambda v: v[0])),
        ValueError,
        "must be a batch",
    ),
    "floats to synthesise_integers": (
        lambda: WAVELET.synthesise_integers(FLOATS),
        TypeError,
        "base must hold integers, got torch.float32: use synthesise",
    ),
    "integers to synthesise": (
        lambda: WAVELET.synthesise(INTEGERS),
        TypeError,
        "base must hold floats, got torch.int32: use synthesise_integers",
    ),
    "haar_step": (
        lambda: haar.haar_step(U8),
        TypeError,
        "wants floats, got torch.uint8: use haar_step_integers",
    ),
    "haar_step_integers": (
        lambda: haar.haar_step_integers(U8.half()),
        TypeError,
        "integers wanted, got torch.float16",
    ),
    "levels of identity": (
        lambda: Identity(1),
        ValueError,
        "Identity has one scale, so levels=0; got 1",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("levels", [-1, 11, 1.0, True, None, "2"])
def test_levels_are_a_small_whole_number(levels: object) -> None:
    with pytest.raises(ValueError, match="levels must be a whole number from 0 to 10"):
        HaarWavelet(levels)


def test_the_deepest_8_bit_map_fits() -> None:
    """255 * 4^10 still lies in 32 bits: a white image of 1024x1024 reaches it."""
    x = torch.full((1, 1, 1024, 1024), 255, dtype=torch.uint8)
    scales = HaarWavelet(10).analyse_integers(x)
    assert scales[0].item() == 255 * 4**10
    assert torch.equal(HaarWavelet(10).synthesise_integers(scales), x.to(torch.int32))


def test_a_step_on_uint8_does_not_wrap_around() -> None:
    bands = haar.haar_step_integers(torch.full((2, 2), 200, dtype=torch.uint8))
    assert bands.s.item() == 800
    assert (haar.haar_step_integers_inverse(bands) == 200).all()
