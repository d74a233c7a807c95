"""What established lossless image codecs make of the same images: the baseline for a model's bits
per dimension.

Each image becomes a file of its own, headers included, and every file is decoded and compared
before its size counts. More effort is not always smaller on images as small as 32x32, so WebP, JPEG
XL and JPEG-LS try several settings on each image and keep the smallest file: a weak baseline would
flatter the model.

`reference_sizes` counts a file an image, `archive_sizes` a single file of all images, where headers
hardly count and a codec may learn from one image for the next. `encode_image` and `decode_image`
give the files themselves.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from pcdm_lib.advice import MissingExtra, need

# Measured in bits per dimension on the first 600 CIFAR-10 test images, with the libwebp of Pillow
# 13.0 and libjxl 0.11: methods 1, 3, 4, 5 and 6 give 4.562, 4.568, 4.598, 4.698 and 4.693; the
# smallest of the first four 4.547. Method 6 alone takes as long as all of them four times over.
WEBP_METHODS = (1, 3, 4, 5)
# Efforts 7, 8, 9 and 10 give 4.090, 4.083, 4.113 and 4.150; the smallest of the first three 4.072.
JPEG_XL_EFFORTS = (7, 8, 9)
# HP's colour transformations, an extension of JPEG-LS that CharLS (in imagecodecs) decodes; 0 is
# none. On the same 600 images 0, 1, 2 and 3 give 5.721, 4.501, 4.543 and 4.501; the smallest of all
# 4.482. Files as imagecodecs writes them have 5.836.
JPEG_LS_TRANSFORMATIONS = (0, 1, 2, 3)

# An encoder, (H, W[, 3]) uint8 to a file, and its decoder, which may be told the shape that it has
# to find (None: any).
PlainCodec = tuple[Callable[[np.ndarray], bytes], Callable[..., np.ndarray]]


def _pillow(form: str, settings: Sequence[dict]) -> PlainCodec:
    """Encoder (the smallest file of several settings) and decoder of a format of Pillow's for (H,
    W[, 3]) arrays."""

    def file(image: np.ndarray, options: dict) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, form, **options)
        return buffer.getvalue()

    def encode(image: np.ndarray) -> bytes:
        return min((file(image, options) for options in settings), key=len)

    def decode(data: bytes, shape: tuple[int, ...] | None = None) -> np.ndarray:
        with Image.open(io.BytesIO(data), formats=(form,)) as image:  # reads the header only
            if image.mode not in ("L", "RGB"):  # a palette's indices, say, would pass for gray
                raise ValueError(f"colour mode {image.mode}, expected L or RGB")
            found = (image.height, image.width) + ((3,) if image.mode == "RGB" else ())
            if shape is not None and found != tuple(shape):
                raise ValueError(f"image of shape {found}, expected {tuple(shape)}")
            # PNG's checksums, which loading does not look at; leaves the image unusable
            image.verify()
        with Image.open(io.BytesIO(data), formats=(form,)) as image:
            return np.asarray(image)

    return encode, decode


def _imagecodecs(name: str):
    """The module imagecodecs, imported only for the codecs that need it; ImportError with advice
    where it is missing."""
    try:
        return need("imagecodecs")
    except MissingExtra as error:
        error.msg = f"{name} {error.msg}, or leave it out of `codecs`"
        raise


def _jpeg_xl() -> PlainCodec:
    """Encoder (the smallest file of several efforts) and decoder of lossless JPEG XL for (H, W[,
    3]) arrays."""
    imagecodecs = _imagecodecs("JPEG XL")

    def encode(image: np.ndarray) -> bytes:
        files = (
            imagecodecs.jpegxl_encode(image, lossless=True, effort=e, numthreads=1)
            for e in JPEG_XL_EFFORTS
        )
        return min(files, key=len)

    def decode(data: bytes, shape: tuple[int, ...] | None = None) -> np.ndarray:
        # given an array to fill, imagecodecs compares its shape with the header's before it decodes
        # or allocates anything
        return imagecodecs.jpegxl_decode(
            data, numthreads=1, out=None if shape is None else np.empty(shape, np.uint8)
        )

    return encode, decode


def _jpeg_ls() -> PlainCodec:
    """Encoder (the smallest file of several colour transformations) and decoder of lossless JPEG-LS
    for (H, W[, 3]) arrays.

    imagecodecs has no option for the transformation and puts an optional SPIFF header of 44 bytes
    in front. So the colours are transformed here, the header is left out and the segment that tells
    a decoder of the transformation is put in its place.
    """
    imagecodecs = _imagecodecs("JPEG-LS")

    def file(image: np.ndarray, transformation: int) -> bytes:
        # Room for the worst case, 32 bits a sample and some stuffing: the default is too small for
        # noise of 300x300.
        data = imagecodecs.jpegls_encode(
            _hp_transform(image, transformation), out=5 * image.size + 4096
        )
        # what follows the entry that ends a SPIFF header: the image
        data = data.rpartition(b"\xff\xe8\x00\x08\x00\x00\x00\x01")[2]
        # 7: its length without the marker
        segment = b"\xff\xe8\x00\x07mrfx" + bytes([transformation]) if transformation else b""
        # the first two bytes are the marker that begins an image
        return data[:2] + segment + data[2:]

    def encode(image: np.ndarray) -> bytes:
        return min(
            (file(image, t) for t in (JPEG_LS_TRANSFORMATIONS if image.ndim == 3 else (0,))),
            key=len,
        )

    def decode(data: bytes, shape: tuple[int, ...] | None = None) -> np.ndarray:
        if data[-2:] != b"\xff\xd9":  # CharLS can take seconds to see that a file was cut off
            raise ValueError("the marker that ends an image is missing")
        # as for JPEG XL
        return imagecodecs.jpegls_decode(
            data, out=None if shape is None else np.empty(shape, np.uint8)
        )

    return encode, decode


def _hp_transform(image: np.ndarray, number: int) -> np.ndarray:
    """HP's colour transformation 1, 2 or 3 of an RGB image (H, W, 3), modulo 256 and so without
    loss; 0 copies any image."""
    if number == 0:
        # with plain strides: CharLS refuses odd ones, which NumPy allows along sides of 1
        return image.copy()
    red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
    if number == 1:
        planes = red - green + 128, green, blue - green + 128
    elif number == 2:
        planes = red - green + 128, green, blue - (red + green) // 2 + 128
    else:
        blueness, redness = (blue - green + 128) % 256, (red - green + 128) % 256
        planes = green + (blueness + redness) // 4 - 64, blueness, redness
    return (np.stack(planes, -1) % 256).astype(np.uint8)


CODECS: dict[str, Callable[[], PlainCodec]] = {
    "PNG": lambda: _pillow("PNG", [{"optimize": True}]),
    "WebP": lambda: _pillow(
        "WEBP",
        [{"lossless": True, "quality": 100, "method": m, "exact": True} for m in WEBP_METHODS],
    ),
    "JPEG XL": _jpeg_xl,
    "JPEG-LS": _jpeg_ls,
}


def reference_sizes(
    images: torch.Tensor,
    codecs: Sequence[str] = ("PNG", "WebP", "JPEG XL"),
    *,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Bytes of each image's own lossless file: {codec: int64 (N,)} for uint8 images (N, C, H, W), C
    of 1 or 3.

    Raises:
        ValueError: for other images or an unknown codec.
        RuntimeError: if a file does not decode to its image.
    """
    arrays = _arrays(images)
    _check_known(codecs)
    return {name: _sizes(name, arrays, progress) for name in codecs}


def _arrays(images: torch.Tensor) -> np.ndarray:
    """Images (N, C, H, W) as the codecs take them: (N, H, W) for gray, (N, H, W, 3) for colour.
    ValueError for others."""
    if (
        images.dtype != torch.uint8
        or images.ndim != 4
        or images.shape[1] not in (1, 3)
        or 0 in images.shape
    ):
        raise ValueError(
            f"expected non-empty uint8 (N, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return arrays[..., 0] if images.shape[1] == 1 else arrays


def _check_known(codecs: Sequence[str]) -> None:
    unknown = [name for name in codecs if name not in CODECS]
    if unknown:
        raise ValueError(f"unknown codecs {unknown}: expected some of {list(CODECS)}")


def _sizes(name: str, arrays: np.ndarray, progress: bool) -> np.ndarray:
    encode, decode = CODECS[name]()
    sizes = np.empty(len(arrays), np.int64)
    for i, image in enumerate(tqdm(arrays, desc=name, disable=not progress)):
        data = encode(image)
        _check_same(name, decode(data), image, f"image {i}")
        sizes[i] = len(data)
    return sizes


def _check_same(name: str, decoded: np.ndarray, image: np.ndarray, subject: str) -> None:
    """RuntimeError unless a file decoded to its image (H, W[, 3]); `subject` names the image in the
    message."""
    if decoded.ndim > image.ndim:  # WebP knows no gray and stores three equal channels
        same = decoded.shape[:2] == image.shape and (decoded == image[..., None]).all()
    else:
        same = np.array_equal(decoded, image)
    if not same:
        raise RuntimeError(
            f"{name} changed {subject}, expected every bit: do not use its size, install another "
            f"version"
        )


def archive_sizes(
    images: torch.Tensor, codecs: Sequence[str] = ("PNG", "WebP", "JPEG XL", "JPEG-LS")
) -> dict[str, int]:
    """Bytes of one lossless file of all images, laid out by `mosaic`: {codec: bytes} for uint8 (N,
    C, H, W), C of 1 or 3.

    The file is decoded and compared, padding included. Its bytes are all counted, so 8 * bytes /
    images.numel() are bits per dimension; N, H and W, which cut the mosaic up again
    (`from_mosaic`), are not in the file, as a model knows them too. No image can be decoded alone,
    and the codecs see joins between images: compare with `reference_sizes`.

    Raises:
        ValueError: for other images, an unknown codec or a mosaic that is too large for a format
            (WebP: 16383 pixels a side).
        PIL.Image.DecompressionBombError: for PNG and WebP beyond twice
            `PIL.Image.MAX_IMAGE_PIXELS`.
        RuntimeError: if a bit was changed.
    """
    grid = mosaic(images)
    _check_known(codecs)
    sizes = {}
    for name in codecs:
        encode, decode = CODECS[name]()
        data = encode(grid)
        _check_same(name, decode(data), grid, "the archive")
        sizes[name] = len(data)
    return sizes


def mosaic(images: torch.Tensor) -> np.ndarray:
    """All images (N, C, H, W), uint8 with C of 1 or 3, row by row in one array (rows * H, columns *
    W[, 3]).

    Of the grids with rows <= columns <= 2 * rows the one with the fewest empty cells is taken, and
    of several the one nearest to a square: N = 200 fills 10 x 20, N = 7 leaves one cell of 2 x 4.
    Empty cells are at the end of the last row and zero, which costs a codec next to nothing. Raises
    ValueError for other images.
    """
    arrays = _arrays(images)
    count, height, width = arrays.shape[:3]
    rows, columns = _grid(count)
    cells = np.zeros((rows * columns, *arrays.shape[1:]), np.uint8)
    cells[:count] = arrays
    # (rows, H, columns, W, C)
    cells = cells.reshape(rows, columns, height, width, -1).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, *arrays.shape[3:])


def from_mosaic(grid: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """The images (N, C, H, W) of `shape` that `mosaic` laid out as `grid`; ValueError if a mosaic
    of theirs has another shape."""
    if len(shape) != 4 or min(shape) < 1 or shape[1] not in (1, 3):
        raise ValueError(f"expected the images' shape (N, 1 or 3, H, W), got {tuple(shape)}")
    count, channels, height, width = shape
    rows, columns = _grid(count)
    expected = (rows * height, columns * width) + ((3,) if channels == 3 else ())
    if grid.dtype != np.uint8 or grid.shape != expected:
        raise ValueError(
            f"expected a uint8 mosaic {expected} of images {tuple(shape)}, got {grid.dtype} "
            f"{grid.shape}"
        )
    cells = grid.reshape(rows, height, columns, width, channels).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(cells.reshape(-1, channels, height, width)[:count].copy())


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns for `count` images: the fewest empty cells with rows <= columns <= 2 * rows,
    then the most rows."""
    # up to the root, rounded up
    pairs = [(rows, -(-count // rows)) for rows in range(1, math.isqrt(count - 1) + 2)]
    return min(
        ((r, c) for r, c in pairs if r <= c <= 2 * r),
        key=lambda pair: (pair[0] * pair[1], -pair[0]),
    )


def encode_image(codec: str, image: np.ndarray) -> bytes:
    """The file of one uint8 image (H, W), gray, or (H, W, 3), colour, of any size from 1x1; checked
    by decoding it.

    The smallest of the settings above. WebP has no gray and is refused for it. PNG and WebP end at
    twice `PIL.Image.MAX_IMAGE_PIXELS` (Pillow's guard when decoding; from once on it warns), WebP
    at 16383 pixels a side.

    Raises ValueError for an unknown codec or an image that is not such an array or that the codec
    cannot store, ImportError where imagecodecs is needed and missing, RuntimeError if the file does
    not decode to the image.
    """
    _check_known([codec])
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise ValueError(f"expected a uint8 image, got {image.dtype} {image.shape}")
    _check_shape(codec, image.shape)
    encode, decode = CODECS[codec]()
    image = np.ascontiguousarray(image)
    try:
        data = bytes(encode(image))
        decoded = decode(data, image.shape)
    except Exception as error:  # each library has errors of its own
        raise ValueError(
            f"{codec} cannot store an image of shape {image.shape}: {_line(error)}"
        ) from error
    _check_same(codec, decoded, image, "the image")
    return data


def decode_image(codec: str, data: bytes, shape: Sequence[int] | None = None) -> np.ndarray:
    """The uint8 image, (H, W) or (H, W, 3), in a file of `encode_image`.

    `shape`, if given, is the image's expected shape. It is compared with the file's header before
    any pixel is decoded, so data from strangers cannot ask for more memory than it. PNG has
    checksums; in the other formats a changed byte can go unnoticed and change the image, so a
    caller who must know keeps a checksum of its own.

    Raises ValueError for an unknown codec, a shape that no image has, and data that are damaged, of
    another format or of an image that is not uint8, gray or colour, or not of `shape`; ImportError
    where imagecodecs is needed and missing.
    """
    _check_known([codec])
    if shape is not None:
        shape = tuple(shape)
        _check_shape(codec, shape)
    _, decode = CODECS[codec]()
    try:
        image = decode(data, shape)
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise ValueError(
            f"the file is damaged or is no {codec} file of such an image: {_line(error)}"
        ) from error
    if (
        image.dtype != np.uint8
        or not _is_image_shape(image.shape)
        or image.shape != (shape or image.shape)
    ):
        found, expected = f"{image.dtype} {image.shape}", f"uint8 {shape or '(H, W) or (H, W, 3)'}"
        raise ValueError(
            f"the file is damaged or is no {codec} file of such an image: it holds {found}, "
            f"expected {expected}"
        )
    return image


def _is_image_shape(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and min(shape) >= 1 and tuple(shape[2:]) in ((), (3,))


def _check_shape(codec: str, shape: tuple[int, ...]) -> None:
    """ValueError unless `shape` is (H, W) or (H, W, 3) of at least a pixel, and not gray for
    WebP."""
    if not _is_image_shape(shape):
        raise ValueError(
            f"expected an image (H, W) or (H, W, 3) of at least one pixel, got shape {shape}"
        )
    if codec == "WebP" and len(shape) == 2:  # it would come back as three channels
        raise ValueError(f"WebP stores no gray images: expected (H, W, 3), got shape {shape}")


def _line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def file_bits_per_dim(sizes: np.ndarray, images: torch.Tensor) -> tuple[float, float]:
    """Mean bits per dimension of files of `sizes` bytes (N,) for images (N, C, H, W), and its
    standard error.

    The standard error is over images and NaN where there is only one.
    """
    if len(sizes) != len(images) or len(sizes) == 0:
        raise ValueError(
            f"expected one size an image and at least one, got {len(sizes)} sizes for "
            f"{len(images)} images"
        )
    bpd = 8 * np.asarray(sizes, np.float64) / images[0].numel()
    error = bpd.std(ddof=1) / np.sqrt(len(bpd)) if len(bpd) > 1 else np.nan
    return float(bpd.mean()), float(error)
