"""What established lossless image codecs make of the same images: the yardstick beside a model's bits per dimension.

Each image becomes a file of its own, headers included, and every file is decoded and
compared before its size counts. More effort is not always smaller on images as small as 32x32, so WebP and
JPEG XL try several settings on each image and keep the smallest file: a weak yardstick would flatter the model.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

# Measured in bits per dimension on the first 600 CIFAR-10 test images, with the libwebp of Pillow 13.0 and libjxl 0.11:
# methods 1, 3, 4, 5 and 6 give 4.562, 4.568, 4.598, 4.698 and 4.693; the smallest of the first four 4.547.
# Method 6 alone takes as long as all of them four times over.
WEBP_METHODS = (1, 3, 4, 5)
# Efforts 7, 8, 9 and 10 give 4.090, 4.083, 4.113 and 4.150; the smallest of the first three 4.072.
JPEG_XL_EFFORTS = (7, 8, 9)


def _pillow(form: str, settings: Sequence[dict]) -> tuple[Callable[[np.ndarray], bytes], Callable[[bytes], np.ndarray]]:
    """Encoder (the smallest file of several settings) and decoder of a format of Pillow's for (H, W[, 3]) arrays."""

    def file(image: np.ndarray, options: dict) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, form, **options)
        return buffer.getvalue()

    def encode(image: np.ndarray) -> bytes:
        return min((file(image, options) for options in settings), key=len)

    def decode(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data), formats=(form,)) as image:
            return np.asarray(image)

    return encode, decode


def _jpeg_xl() -> tuple[Callable[[np.ndarray], bytes], Callable[[bytes], np.ndarray]]:
    """Encoder (the smallest file of several efforts) and decoder of lossless JPEG XL for (H, W[, 3]) arrays."""
    try:
        import imagecodecs  # here, because only this codec needs it
    except ImportError as error:
        raise ImportError("JPEG XL needs imagecodecs: pip install imagecodecs, or leave it out of `codecs`") from error

    def encode(image: np.ndarray) -> bytes:
        files = (imagecodecs.jpegxl_encode(image, lossless=True, effort=e, numthreads=1) for e in JPEG_XL_EFFORTS)
        return min(files, key=len)

    return encode, lambda data: imagecodecs.jpegxl_decode(data, numthreads=1)


CODECS = {
    "PNG": lambda: _pillow("PNG", [{"optimize": True}]),
    "WebP": lambda: _pillow("WEBP", [{"lossless": True, "quality": 100, "method": m, "exact": True} for m in WEBP_METHODS]),
    "JPEG XL": _jpeg_xl,
}


def reference_sizes(
    images: torch.Tensor, codecs: Sequence[str] = ("PNG", "WebP", "JPEG XL"), *, progress: bool = False
) -> dict[str, np.ndarray]:
    """Bytes of each image's own lossless file: {codec: int64 (N,)} for uint8 images (N, C, H, W), C of 1 or 3.

    Raises ValueError for other images or an unknown codec, RuntimeError if a file does not decode to its image.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"expected non-empty uint8 (N, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}")
    unknown = [name for name in codecs if name not in CODECS]
    if unknown:
        raise ValueError(f"unknown codecs {unknown}: expected some of {list(CODECS)}")
    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # (N, H, W, C)
    if images.shape[1] == 1:
        arrays = arrays[..., 0]  # the codecs take gray as (H, W)
    return {name: _sizes(name, arrays, progress) for name in codecs}


def _sizes(name: str, arrays: np.ndarray, progress: bool) -> np.ndarray:
    encode, decode = CODECS[name]()
    sizes = np.empty(len(arrays), np.int64)
    for i, image in enumerate(tqdm(arrays, desc=name, disable=not progress)):
        data = encode(image)
        decoded = decode(data)
        if decoded.ndim > image.ndim:  # WebP knows no gray and stores three equal channels
            same = decoded.shape[:2] == image.shape and (decoded == image[..., None]).all()
        else:
            same = np.array_equal(decoded, image)
        if not same:
            raise RuntimeError(
                f"{name} changed image {i}, expected every bit: do not use its size, install another version"
            )
        sizes[i] = len(data)
    return sizes


def file_bits_per_dim(sizes: np.ndarray, images: torch.Tensor) -> tuple[float, float]:
    """Mean bits per dimension of files of `sizes` bytes (N,) for images (N, C, H, W), and its standard error.

    The standard error is over images and NaN where there is only one.
    """
    if len(sizes) != len(images) or len(sizes) == 0:
        raise ValueError(f"expected one size an image and at least one, got {len(sizes)} sizes for {len(images)} images")
    bpd = 8 * np.asarray(sizes, np.float64) / images[0].numel()
    error = bpd.std(ddof=1) / np.sqrt(len(bpd)) if len(bpd) > 1 else np.nan
    return float(bpd.mean()), float(error)
