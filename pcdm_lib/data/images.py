"""What the datasets share: the record `ImageData`, the data folder, image files read as 8-bit RGB,
and what is cut out of them."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

from pcdm_lib import outputs

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TRANSPARENCY = "transparency"
ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held


@dataclass(frozen=True)
class ImageData:
    """One dataset: uint8 images (N, C, H, W) to train on and (M, C, H, W) held out."""

    # as `data.load` takes it, without a path or options: "photos", "cifar10", "folder",
    # "imagenet32-old", ...
    name: str
    label: str  # what figures and files say the numbers were measured on
    train: torch.Tensor
    heldout: torch.Tensor
    source: dict  # JSON-able: folder, files, counts, sha256 of the bytes of both tensors

    @property
    def of_a_path(self) -> bool:
        """Whether these are images of somebody's folder, which may change, rather than of a set
        that everybody has."""
        return self.name in ("folder", "crops", "imagenet128")

    @property
    def asked(self) -> str:
        """What `data.load` is asked for these images by."""
        if not self.of_a_path:
            return self.name
        options = "&".join(f"{k}={v}" for k, v in self.source.get("options", {}).items())
        return f"{self.name}:{self.source['folder']}" + (f"?{options}" if options else "")


def image_data(
    name: str,
    label: str,
    train: np.ndarray,
    heldout: np.ndarray,
    *,
    train_sha256: str | None = None,
    heldout_sha256: str | None = None,
    **source,
) -> ImageData:
    """Freeze arrays (N, C, H, W) as tensors and add the facts that every source has; a checksum
    that is known is not computed anew."""
    train, heldout = np.ascontiguousarray(train), np.ascontiguousarray(heldout)
    source |= {
        "train_count": len(train),
        "heldout_count": len(heldout),
        "train_sha256": train_sha256 or hashlib.sha256(train.data).hexdigest(),
        "heldout_sha256": heldout_sha256 or hashlib.sha256(heldout.data).hexdigest(),
    }
    return ImageData(name, label, as_tensor(train), as_tensor(heldout), source)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """The tensor that shares an array's memory."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    # a map that the system gives for reading only: torch says that one must not write into it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def count(kept: int, total: int, official: int | None = None) -> str:
    """How many images of how many: those of a limit are the first; those that a cut-short copy
    holds may lie anywhere in the `official` set."""
    if official is None or total == official:
        return f"{kept}" if kept == total else f"first {kept} of {total}"
    return f"{kept} of {official}" if kept == total else f"first {kept} of {total} (of {official})"


# Image files


def check_input(path: Path) -> None:
    """Refuse at once what is there but no file: a pipe would be waited for.

    Raises:
        ValueError: for a pipe, a device or a socket. A folder and a missing file are left to who
            opens them.
    """
    try:
        kind = outputs.kind_of(path.stat().st_mode)
    except (OSError, ValueError):
        return
    if kind:
        raise ValueError(f"{path} is {kind}: give a file")


def read_rgb(
    path: Path,
    least: int = 1,
    advice: str = "remove it or choose a smaller size",
    *,
    upright: bool = True,
) -> np.ndarray:
    """One 8-bit image file as (H, W, 3), at least `least` pixels a side.

    Args:
        upright: turn it as its EXIF orientation says, which is how it is shown.
    """
    check_input(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read as PNG, JPEG or WebP ({error}): repair or remove it"
        ) from error
    with file:
        pixels = decode_rgb(file, str(path), upright=upright)
    height, width = pixels.shape[:2]
    if min(height, width) < least:
        raise ValueError(
            f"{path} is {width}x{height} pixels, expected at least {least}x{least}: {advice}"
        )
    return pixels


def decode_rgb(
    file: BinaryIO, name: str, *, lenient: bool = False, upright: bool = False
) -> np.ndarray:
    """One 8-bit image as (H, W, 3), gray and palette spread to RGB; what RGB cannot hold is an
    error.

    Args:
        file: the open file.
        name: what errors call the file.
        lenient: convert CMYK and transparency, which are lost in RGB, as Pillow does it.
        upright: turn the image as its EXIF orientation says.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            what = beyond_rgb(image, file)
            if lenient and what in (TRANSPARENCY, "mode CMYK"):
                what = None
            shown = ImageOps.exif_transpose(image) if upright and not what else image
            pixels = None if what else np.asarray(shown.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} cannot be read as PNG, JPEG or WebP ({error}): repair or remove it"
        ) from error
    if pixels is None:
        raise ValueError(
            f"{name} has {what}, expected one 8-bit RGB, gray or palette image: convert or remove "
            f"it"
        )
    return pixels


def beyond_rgb(image: Image.Image, file: BinaryIO) -> str | None:
    """What an open image has that 8-bit RGB would lose without a word, or None."""
    # Pillow cuts 16-bit colour to 8 bits: ask the header, whose byte 24 is the depth
    if image.format == "PNG":
        here = file.tell()
        file.seek(24)
        depth = file.read(1)[0]
        file.seek(here)
        if depth > 8:
            return f"{depth} bits a channel"
    if image.has_transparency_data:
        return TRANSPARENCY
    # a JPEG's further frames are previews
    frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1
    if frames > 1:
        return f"{frames} frames"
    return None if image.mode in ("1", "L", "P", "RGB") else f"mode {image.mode}"


# What is cut out of an image


def box_reduce(image: np.ndarray, k: int) -> np.ndarray:
    """(H, W, 3) -> (H // k, W // k, 3): rounded means of k x k blocks, in integers: the same on
    every machine."""
    height, width = image.shape[0] // k, image.shape[1] // k
    blocks = image[: height * k, : width * k].astype(np.uint32).reshape(height, k, width, k, 3)
    return ((blocks.sum((1, 3), dtype=np.uint32) + k * k // 2) // (k * k)).astype(np.uint8)


def grid(image: np.ndarray, size: int, stride: int) -> np.ndarray:
    """All size x size patches (N, 3, size, size) of an image (H, W, 3), in steps of `stride` from
    the top left."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    return windows[::stride, ::stride].reshape(-1, 3, size, size)


def spread(n: int) -> np.ndarray:
    """An order of range(n) whose every beginning is spread over the whole, so that a limit keeps
    some of everything."""
    step = max(1, round(n * 0.6180339887))
    while np.gcd(step, n) != 1:
        step += 1
    return np.arange(n) * step % n
