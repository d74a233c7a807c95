"""The codecs to compare with: real files, every bit kept, and the arithmetic from bytes to bits per
dimension."""

from __future__ import annotations

import io
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pcdm_lib.coding import plain as plain_module
from pcdm_lib.coding.plain import (
    CODECS,
    archive_sizes,
    decode_image,
    encode_image,
    file_bits_per_dim,
    from_mosaic,
    mosaic,
    reference_sizes,
)
from pcdm_lib.data import load_data

ALL = ("PNG", "WebP", "JPEG XL", "JPEG-LS")


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return load_data("photos", heldout_limit=6).heldout


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


@pytest.mark.parametrize(
    ("codec", "setting"),
    [
        ("WebP", "WEBP_METHODS"),
        ("JPEG XL", "JPEG_XL_EFFORTS"),
        ("JPEG-LS", "JPEG_LS_TRANSFORMATIONS"),
    ],
)
def test_the_smallest_of_several_settings_counts(
    photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch, codec: str, setting: str
) -> None:
    smallest = reference_sizes(photos, [codec])[codec]
    alone = []
    for value in getattr(plain_module, setting):
        monkeypatch.setattr(plain_module, setting, (value,))
        alone.append(reference_sizes(photos, [codec])[codec])
    assert np.array_equal(smallest, np.minimum.reduce(alone))


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 32, 32), (2, 1, 32, 32), (2, 3, 7, 5), (1, 1, 1, 1), (1, 3, 1, 1), (2, 1, 5, 3)],
)
def test_noise_and_flat_images_of_any_shape_come_back(shape: tuple[int, ...]) -> None:
    noise = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flat = torch.full(shape, 7, dtype=torch.uint8)
    for images in (noise, flat, noise.transpose(2, 3)):
        for sizes in reference_sizes(images, ALL).values():
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
    with pytest.raises(
        ValueError,
        match=r"unknown codecs \['FLIF'\]: expected some of \['PNG', 'WebP', 'JPEG XL', "
        r"'JPEG-LS'\]",
    ):
        reference_sizes(photos, ["PNG", "FLIF"])
    image = np.zeros((2, 2), np.uint8)
    for refused in (
        lambda: archive_sizes(photos, ["FLIF"]),
        lambda: encode_image("FLIF", image),
        lambda: decode_image("FLIF", b""),
    ):
        with pytest.raises(ValueError, match=r"unknown codecs \['FLIF'\]"):
            refused()


def test_a_codec_that_changes_a_bit_is_caught(
    photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, decode = CODECS["PNG"]()
    for wrong in (
        lambda x: decode(x) ^ np.uint8(1),
        lambda x: decode(x)[:-1],
        lambda x: np.stack([decode(x)] * 2, -1),
    ):
        monkeypatch.setitem(CODECS, "PNG", lambda wrong=wrong: (encode, wrong))
        with pytest.raises(RuntimeError, match="PNG changed image 0"):
            reference_sizes(photos, ["PNG"])
        with pytest.raises(RuntimeError, match="PNG changed the archive"):
            archive_sizes(photos, ["PNG"])
    monkeypatch.setitem(CODECS, "PNG", lambda: (encode, lambda x, shape: decode(x) ^ np.uint8(1)))
    with pytest.raises(RuntimeError, match="PNG changed the image"):
        encode_image("PNG", mosaic(photos))


def test_missing_imagecodecs_is_explained(
    photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert list(reference_sizes(photos[:1], ["PNG", "WebP"])) == ["PNG", "WebP"]
    with pytest.raises(
        ImportError, match=r'JPEG XL needs imagecodecs: pip install "pcdm-lib\[coding\]"'
    ):
        reference_sizes(photos[:1])
    for codec in ("JPEG XL", "JPEG-LS"):
        for call in (
            lambda codec=codec: encode_image(codec, mosaic(photos)),
            lambda codec=codec: decode_image(codec, b""),
        ):
            with pytest.raises(ImportError, match=f"{codec} needs imagecodecs"):
                call()


def test_progress_names_the_codec(photos: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    reference_sizes(photos[:1], ["PNG"])
    assert capsys.readouterr().err == ""
    reference_sizes(photos[:1], ["PNG"], progress=True)
    captured = capsys.readouterr()
    assert "PNG" in captured.out + captured.err


def test_file_bits_per_dim_by_hand() -> None:
    # 8 dimensions: bytes are bits per dimension
    images = torch.zeros(2, 1, 4, 2, dtype=torch.uint8)
    # standard deviation sqrt(2), over sqrt(2) images
    assert file_bits_per_dim(np.array([3, 5]), images) == (4.0, 1.0)
    mean, error = file_bits_per_dim(np.array([3]), images[:1])
    assert mean == 3.0 and math.isnan(error)
    for count in (0, 1):
        with pytest.raises(ValueError, match="one size an image"):
            file_bits_per_dim(np.ones(count), images[: 2 * count])


def test_jpeg_ls_transforms_colours_and_beats_the_plain_file(photos: torch.Tensor) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    arrays = photos.permute(0, 2, 3, 1).contiguous().numpy()
    plain = np.array([len(imagecodecs.jpegls_encode(a)) for a in arrays])
    assert (reference_sizes(photos, ["JPEG-LS"])["JPEG-LS"] < plain).all()


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_every_transformation_of_jpeg_ls_is_undone_by_the_decoder(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_module, "JPEG_LS_TRANSFORMATIONS", (number,))
    # wraps round modulo 256 in many pixels
    noise = np.random.default_rng(number).integers(0, 256, (64, 50, 3), dtype=np.uint8)
    data = encode_image("JPEG-LS", noise)
    # start and end of an image
    assert data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9" and b"SPIFF" not in data
    assert (b"mrfx" + bytes([number]) in data) == (number > 0)
    assert np.array_equal(decode_image("JPEG-LS", data), noise)


@pytest.mark.parametrize("shape", [(300, 300), (300, 300, 3), (65527, 1), (1, 65496), (65536, 1)])
def test_jpeg_ls_of_noise_larger_than_raw_and_of_long_sides(shape: tuple[int, ...]) -> None:
    # the sides hold the bytes of markers: ff f7, ff d8
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = encode_image("JPEG-LS", noise)
    assert len(data) > noise.size and np.array_equal(decode_image("JPEG-LS", data, shape), noise)


@pytest.mark.parametrize(
    ("count", "grid"),
    [
        (1, (1, 1)),
        (2, (1, 2)),
        (3, (2, 2)),
        (4, (2, 2)),
        (5, (2, 3)),
        (7, (2, 4)),
        (8, (2, 4)),
        (9, (3, 3)),
        (200, (10, 20)),
        (10_000, (100, 100)),
    ],
)
def test_grid_of_a_mosaic(count: int, grid: tuple[int, int]) -> None:
    assert mosaic(torch.zeros(count, 1, 1, 1, dtype=torch.uint8)).shape == grid
    assert mosaic(torch.zeros(count, 3, 2, 3, dtype=torch.uint8)).shape == (
        2 * grid[0],
        3 * grid[1],
        3,
    )


def test_grids_are_near_squares_with_the_fewest_empty_cells() -> None:
    for count in range(1, 300):
        rows, columns = mosaic(torch.zeros(count, 1, 1, 1, dtype=torch.uint8)).shape
        assert 1 <= rows <= columns <= 2 * rows
        assert rows * columns == min(
            r * c for r in range(1, 20) for c in range(r, 2 * r + 1) if r * c >= count
        )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 4, 6), (3, 1, 1), (3, 5, 2)])
def test_a_mosaic_gives_its_images_back(count: int, size: tuple[int, int, int]) -> None:
    images = torch.randint(
        256, (count, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(count)
    )
    for x in (images, images.transpose(2, 3)):
        assert torch.equal(from_mosaic(mosaic(x), x.shape), x)
        assert int(mosaic(x).astype(int).sum()) == int(x.sum())  # the padding is zeros


def test_a_mosaic_runs_row_by_row() -> None:
    images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 1, 2, 3)
    assert mosaic(images)[::2, ::3].tolist() == [[0, 1, 2, 3], [4, 5, 6, 0]]
    assert mosaic(images)[1::2, 2::3].tolist() == [[0, 1, 2, 3], [4, 5, 6, 0]]


def test_mosaics_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected non-empty uint8"):
        mosaic(torch.zeros(0, 3, 2, 2, dtype=torch.uint8))
    for shape in ((3, 2, 2), (0, 3, 2, 2), (1, 2, 2, 2)):
        with pytest.raises(ValueError, match="expected the images' shape"):
            from_mosaic(np.zeros((2, 2, 3), np.uint8), shape)
    for grid in (
        np.zeros((2, 4), np.uint8),
        np.zeros((2, 3, 3), np.uint8),
        np.zeros((2, 4, 3), np.int64),
    ):
        with pytest.raises(ValueError, match="expected a uint8 mosaic"):
            from_mosaic(grid, (2, 3, 2, 2))
    assert torch.equal(
        from_mosaic(np.zeros((2, 4, 3), np.uint8), (2, 3, 2, 2)),
        torch.zeros(2, 3, 2, 2, dtype=torch.uint8),
    )


def test_an_archive_is_one_file_of_the_mosaic(photos: torch.Tensor) -> None:
    sizes = archive_sizes(photos)
    assert tuple(sizes) == ALL
    for codec, size in sizes.items():
        data = encode_image(codec, mosaic(photos))
        assert len(data) == size and torch.equal(
            from_mosaic(decode_image(codec, data), photos.shape), photos
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_an_archive_of_constant_images_is_smaller_than_their_files(channels: int) -> None:
    images = torch.full((7, channels, 16, 16), 99, dtype=torch.uint8)  # 7: with an empty cell
    archive, files = archive_sizes(images), reference_sizes(images, ALL)
    for codec in ALL:
        assert 0 < archive[codec] < files[codec].sum()


def test_an_archive_of_one_image_is_its_file(photos: torch.Tensor) -> None:
    assert archive_sizes(photos[:1]) == {
        codec: int(size[0]) for codec, size in reference_sizes(photos[:1], ALL).items()
    }


SHAPES = [
    (1, 1),
    (1, 1, 3),
    (1, 7),
    (7, 1),
    (1, 7, 3),
    (7, 1, 3),
    (1, 3),
    (3, 3),
    (5, 3, 3),
    (16, 9),
    (33, 20, 3),
]


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_image_of_any_shape_comes_back(codec: str, shape: tuple[int, ...]) -> None:
    if codec == "WebP" and len(shape) == 2:
        with pytest.raises(ValueError, match="WebP stores no gray images"):
            encode_image(codec, np.zeros(shape, np.uint8))
        with pytest.raises(ValueError, match="WebP stores no gray images"):
            decode_image(codec, b"", shape)
        return
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    black_and_white = np.where(noise < 128, np.uint8(0), np.uint8(255))
    for image in (noise, np.full(shape, 200, np.uint8), black_and_white, np.flip(noise, 1)):
        data = encode_image(codec, image)
        assert isinstance(data, bytes)
        for known in (None, shape, list(shape)):
            decoded = decode_image(codec, data, known)
            assert (
                decoded.dtype == np.uint8
                and decoded.shape == shape
                and np.array_equal(decoded, image)
            )
        wider, other_colour = (
            (shape[0], shape[1] + 1, *shape[2:]),
            shape[:2] if len(shape) == 3 else (*shape, 3),
        )
        for other in (wider, (shape[0] + 1, *shape[1:]), other_colour):
            with pytest.raises(
                ValueError, match=f"damaged or is no {codec} file|WebP stores no gray"
            ):
                decode_image(codec, data, other)


@pytest.mark.parametrize("codec", ALL)
def test_a_file_of_one_image_has_the_reference_size(codec: str, photos: torch.Tensor) -> None:
    sizes = reference_sizes(photos[:2], [codec])[codec]
    assert sizes.tolist() == [
        len(encode_image(codec, x.permute(1, 2, 0).numpy())) for x in photos[:2]
    ]


@pytest.mark.parametrize("codec", ALL)
def test_damaged_files_are_refused_in_one_line(codec: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    data = encode_image(codec, image)
    other = encode_image("PNG" if codec != "PNG" else "JPEG XL", image)
    for wrong in (
        b"",
        b"\x00",
        b"nonsense" * 50,
        data[: len(data) // 2],
        data[:20],
        data[1:],
        other,
    ):
        for shape in (None, image.shape):
            with pytest.raises(
                ValueError, match=f"the file is damaged or is no {codec} file"
            ) as caught:
                decode_image(codec, wrong, shape)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", ALL)
def test_changed_bytes_give_an_image_of_the_shape_or_a_value_error(codec: str) -> None:
    image = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    data = encode_image(codec, image)
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ (1 + 37 * i % 255)]) + data[i + 1 :]
        try:
            decoded = decode_image(codec, changed, image.shape)
        except ValueError:
            continue
        assert decoded.dtype == np.uint8 and decoded.shape == image.shape
        # PNG's checksums: no image that is quietly another
        assert codec != "PNG" or np.array_equal(decoded, image)


@pytest.mark.parametrize("codec", ["PNG", "JPEG XL", "JPEG-LS"])
def test_a_huge_image_is_refused_by_its_header(codec: str) -> None:
    huge = np.zeros((3000, 2000), np.uint8)
    data = _quick_jpeg_xl(huge) if codec == "JPEG XL" else encode_image(codec, huge)
    assert len(data) < 20_000
    # no decoder would get through this, but the header is intact
    damaged = data[:50] + bytes(1000) + data[-2:]
    # libjxl counts the frames first
    for file in (data,) if codec == "JPEG XL" else (data, damaged):
        with pytest.raises(ValueError, match="3000, 2000"):
            decode_image(codec, file, (8, 8))


def _quick_jpeg_xl(image: np.ndarray) -> bytes:
    imagecodecs = pytest.importorskip("imagecodecs")
    return imagecodecs.jpegxl_encode(image, lossless=True, effort=1, numthreads=1)


def test_images_of_other_kinds_in_a_file_are_refused() -> None:
    rng = np.random.default_rng(0)
    for mode, array in (
        ("RGBA", rng.integers(0, 256, (4, 4, 4), dtype=np.uint8)),
        ("LA", rng.integers(0, 256, (4, 4, 2), dtype=np.uint8)),
    ):
        for form, codec in (("PNG", "PNG"), ("WEBP", "WebP")):
            file = io.BytesIO()
            Image.fromarray(array, mode).save(file, form, lossless=True)
            with pytest.raises(ValueError, match="colour mode"):
                decode_image(codec, file.getvalue())
    for mode in ("P", "1", "I;16"):
        file = io.BytesIO()
        Image.new(mode, (4, 4)).save(file, "PNG")
        with pytest.raises(ValueError, match="expected L or RGB"):
            decode_image("PNG", file.getvalue())
    for array in (np.zeros((4, 4), np.uint16), np.zeros((4, 4, 4), np.uint8)):
        for shape in (None, (4, 4)):
            with pytest.raises(ValueError, match="damaged or is no JPEG XL file"):
                decode_image("JPEG XL", _quick_jpeg_xl(array), shape)


@pytest.mark.parametrize("codec", ALL)
def test_arrays_that_are_no_images_are_refused(codec: str) -> None:
    for shape in ((), (3,), (0, 4, 3), (4, 0, 3), (4, 4, 1), (4, 4, 4), (2, 4, 4, 3)):
        with pytest.raises(ValueError, match="expected an image"):
            encode_image(codec, np.zeros(shape, np.uint8))
        with pytest.raises(ValueError, match="expected an image"):
            decode_image(codec, b"", shape)
    for dtype in (np.float32, np.int64, np.uint16, bool):
        with pytest.raises(ValueError, match="expected a uint8 image"):
            encode_image(codec, np.zeros((4, 4, 3), dtype))


def test_an_image_too_large_for_a_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"WebP cannot store an image of shape \(1, 16384, 3\)"):
        encode_image("WebP", np.zeros((1, 16384, 3), np.uint8))
