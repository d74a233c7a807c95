"""Tiles of images of any size, and their scales where sides are odd."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcdm_lib.coding.tiles import TileScales, plan
from pcdm_lib.maps import HaarWavelet, Identity, LaplacianPyramid, Subsampling

SIDES = st.integers(1, 200)


@given(SIDES, SIDES, st.sampled_from([4, 8, 32]), st.sampled_from([1, 2, 4]))
def test_tiles_cover_every_pixel_once_and_none_is_a_sliver(height, width, side, multiple):
    seen = np.zeros((height, width), int)
    for top, left, h, w in plan(height, width, side, multiple):
        seen[top : top + h, left : left + w] += 1
        for cut, last, whole in ((h, top + h == height, height), (w, left + w == width, width)):
            assert last or cut % multiple == 0
            if whole >= side:
                assert side / 2 - multiple <= cut <= 1.5 * side + multiple
    assert (seen == 1).all()


@pytest.mark.parametrize("arguments", [(0, 3, 8), (3, 0, 8), (3, 3, 0), (3, 3, 8, 0)])
def test_sides_below_one_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        plan(*arguments)


@given(
    st.sampled_from(
        [
            HaarWavelet(0),
            HaarWavelet(1),
            HaarWavelet(2),
            HaarWavelet(3),
            LaplacianPyramid(1),
            LaplacianPyramid(2),
            Identity(),
        ]
    ),
    st.integers(1, 13),
    st.integers(1, 13),
    st.sampled_from([1, 3]),
    st.integers(0, 2**32 - 1),
)
def test_any_tile_comes_back_and_costs_as_many_coordinates_as_it_has_pixels(
    hierarchy, height, width, channels, seed
):
    x = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (2, channels, height, width), dtype=np.int32)
    )
    scales = TileScales(hierarchy, (channels, height, width))
    assert scales.dims == channels * height * width
    coarse = None
    for index, (z, given_coarse) in enumerate(scales.decompose(x)):
        assert tuple(z.shape[1:]) == scales.specs[index].shape
        assert coarse is None or torch.equal(coarse, given_coarse)
        # what is not coded is known
        assert bool((z[:, ~torch.from_numpy(scales.coded[index])] == 0).all())
        coarse = scales.refine(index, coarse, z)
    assert torch.equal(coarse, x)


@pytest.mark.parametrize("hierarchy", [HaarWavelet(2), LaplacianPyramid(2), Identity()])
def test_whole_sides_give_the_scales_of_the_map(hierarchy):
    x = torch.randint(
        0, 256, (3, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.int32
    )
    scales, specs = TileScales(hierarchy, (3, 16, 24)), hierarchy.specs((3, 16, 24))
    for (z, coarse), (z_map, coarse_map), spec, own in zip(
        scales.decompose(x), hierarchy.decompose(x), specs, scales.specs
    ):
        assert torch.equal(z, z_map) and (coarse is None or torch.equal(coarse, coarse_map))
        assert (own.shape, own.gain, own.shift, own.kind, own.bands, own.level) == (
            spec.shape,
            spec.gain,
            spec.shift,
            spec.kind,
            spec.bands,
            spec.level,
        )
    assert all(coded.all() for coded in scales.coded)


def test_a_map_that_pays_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        TileScales(Subsampling(1), (3, 8, 8))
