"""The yardstick codecs: real files, every bit kept, and the arithmetic from bytes to bits per dimension."""

from __future__ import annotations

import io
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pcdm_lib import reference_codecs
from pcdm_lib.data import load
from pcdm_lib.reference_codecs import file_bits_per_dim, reference_sizes


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return load("photos", heldout_limit=6).heldout


def test_sizes_of_photographs(photos: torch.Tensor) -> None:
    sizes = reference_sizes(photos)
    assert list(sizes) == ["PNG", "WebP", "JPEG XL"]
    assert all(s.shape == (6,) and s.dtype == np.int64 for s in sizes.values())
    bpd = {name: file_bits_per_dim(s, photos)[0] for name, s in sizes.items()}
    assert 7 > bpd["PNG"] > bpd["WebP"] > bpd["JPEG XL"] > 2


def test_a_size_is_that_of_a_file(photos: torch.Tensor) -> None:
    file = io.BytesIO()
    Image.fromarray(photos[0].permute(1, 2, 0).numpy()).save(file, "PNG", optimize=True)
    assert reference_sizes(photos[:1], ["PNG"])["PNG"].tolist() == [len(file.getvalue())]


@pytest.mark.parametrize(("codec", "setting"), [("WebP", "WEBP_METHODS"), ("JPEG XL", "JPEG_XL_EFFORTS")])
def test_the_smallest_of_several_settings_counts(
    photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch, codec: str, setting: str
) -> None:
    smallest = reference_sizes(photos, [codec])[codec]
    alone = []
    for value in getattr(reference_codecs, setting):
        monkeypatch.setattr(reference_codecs, setting, (value,))
        alone.append(reference_sizes(photos, [codec])[codec])
    assert np.array_equal(smallest, np.minimum.reduce(alone))


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 32, 32), (2, 3, 7, 5), (1, 1, 1, 1), (1, 3, 1, 1), (2, 1, 5, 3)])
def test_noise_and_flat_images_of_any_shape_come_back(shape: tuple[int, ...]) -> None:
    noise = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flat = torch.full(shape, 7, dtype=torch.uint8)
    for images in (noise, flat, noise.transpose(2, 3)):
        for sizes in reference_sizes(images).values():
            assert (sizes > 0).all()


def test_zero_images_have_no_sizes() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        reference_sizes(torch.zeros(0, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 1, 3, 8, 8)])
def test_images_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected non-empty uint8"):
        reference_sizes(torch.zeros(shape, dtype=torch.uint8))


def test_float_images_are_refused() -> None:
    with pytest.raises(ValueError, match="got torch.float32"):
        reference_sizes(torch.zeros(1, 3, 8, 8))


def test_unknown_codec_lists_the_known(photos: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"unknown codecs \['FLIF'\]: expected some of \['PNG', 'WebP', 'JPEG XL'\]"):
        reference_sizes(photos, ["PNG", "FLIF"])


def test_a_codec_that_changes_a_bit_is_caught(photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, decode = reference_codecs.CODECS["PNG"]()
    for wrong in (lambda x: decode(x) ^ np.uint8(1), lambda x: decode(x)[:-1], lambda x: np.stack([decode(x)] * 2, -1)):
        monkeypatch.setitem(reference_codecs.CODECS, "PNG", lambda wrong=wrong: (encode, wrong))
        with pytest.raises(RuntimeError, match="PNG changed image 0"):
            reference_sizes(photos, ["PNG"])


def test_missing_imagecodecs_is_explained(photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert list(reference_sizes(photos[:1], ["PNG", "WebP"])) == ["PNG", "WebP"]
    with pytest.raises(ImportError, match="pip install imagecodecs"):
        reference_sizes(photos[:1])


def test_progress_names_the_codec(photos: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    reference_sizes(photos[:1], ["PNG"])
    assert capsys.readouterr().err == ""
    reference_sizes(photos[:1], ["PNG"], progress=True)
    captured = capsys.readouterr()
    assert "PNG" in captured.out + captured.err


def test_file_bits_per_dim_by_hand() -> None:
    images = torch.zeros(2, 1, 4, 2, dtype=torch.uint8)  # 8 dimensions: bytes are bits per dimension
    assert file_bits_per_dim(np.array([3, 5]), images) == (4.0, 1.0)  # standard deviation sqrt(2), over sqrt(2) images
    mean, error = file_bits_per_dim(np.array([3]), images[:1])
    assert mean == 3.0 and math.isnan(error)
    for count in (0, 1):
        with pytest.raises(ValueError, match="one size an image"):
            file_bits_per_dim(np.ones(count), images[: 2 * count])
