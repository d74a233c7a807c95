"""What the datasets share: the record `ImageData`, the data folder, image files read as 8-bit RGB,
and what is cut out of them."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from pcdm_lib import outputs

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
TRANSPARENCY = "transparency"
# what Pillow raises for a file that it cannot read
UNREADABLE = (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError)
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
        with opened_image(file) as image:
            what = beyond_rgb(image, file)
            if lenient and what in (TRANSPARENCY, "mode CMYK"):
                what = None
            pixels = None if what else pixels_of(image, upright=upright)
    except UNREADABLE as error:
        raise ValueError(
            f"{name} cannot be read as PNG, JPEG or WebP ({error}): repair or remove it"
        ) from error
    if pixels is None:
        raise ValueError(
            f"{name} has {what}, expected one 8-bit RGB, gray or palette image: convert or remove "
            f"it"
        )
    return pixels


@contextlib.contextmanager
def opened_image(file: BinaryIO, *, check: bool = True) -> Iterator[Image.Image]:
    """An open PNG, JPEG or WebP file as Pillow's image.

    Pillow skips the checksums of a PNG where its pixels are, so that one wrong bit gives wrong
    pixels: they are compared here. Its warnings are dropped: what matters of them is an error.

    Args:
        file: the open file.
        check: compare the checksums; not needed where only the header is read.

    Raises:
        UNREADABLE: while the image is opened or read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=FORMATS) as image:
            if check and image.format == "PNG":
                here = file.tell()
                _check_png(file)
                file.seek(here)
            yield image


def _check_png(file: BinaryIO) -> None:
    """ValueError where a chunk is not what was written."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        crc = zlib.crc32(kind)
        while length:
            part = file.read(min(length, 1 << 20))
            if not part:
                raise ValueError("it is cut short")
            crc, length = zlib.crc32(part, crc), length - len(part)
        if file.read(4) != crc.to_bytes(4, "big"):
            raise ValueError(f"the checksum of its chunk {kind.decode('latin-1')!r} is wrong")
        if kind == b"IEND":
            return


_BAND = 1 << 22  # pixels that are converted at a time

# How an array lies in what the EXIF orientation of that number shows: an array is turned by filling
# this view of the result.
TURNED: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


def in_rgb(band: Image.Image) -> Image.Image:
    """The same in mode "RGB"."""
    return band.convert("RGB")


def pixels_of(
    image: Image.Image,
    convert: Callable[[Image.Image], Image.Image] = in_rgb,
    *,
    upright: bool = False,
) -> np.ndarray:
    """An open image as uint8 (H, W) or (H, W, 3).

    In bands of rows: at once, Pillow would hold a large image four times.

    Args:
        image: the image.
        convert: gives a band of it in mode "L" or "RGB".
        upright: turn it as its EXIF orientation says.
    """
    width, height = image.size
    if 0 in image.size:
        raise ValueError("it has no pixels")
    turn = TURNED.get(image.getexif().get(ORIENTATION, 1)) if upright else None
    rows = max(1, _BAND // width)
    found = view = np.empty((0, 0), np.uint8)
    for top in range(0, height, rows):
        band = np.asarray(convert(image.crop((0, top, width, min(height, top + rows)))))
        if top == 0:
            sides = (height, width)
            if turn and turn(np.empty((1, 2))).shape == (2, 1):
                sides = (width, height)
            found = np.empty((*sides, *band.shape[2:]), np.uint8)
            view = turn(found) if turn else found
        view[top : top + len(band)] = band
    return found


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
    reduced = np.empty((height, width, 3), np.uint8)
    for top in range(height):  # row by row: integers of 32 bits of the whole might fill the memory
        band = image[top * k : (top + 1) * k, : width * k]
        sums = band.sum(0, dtype=np.uint32).reshape(width, k, 3).sum(1, dtype=np.uint32)
        reduced[top] = (sums + k * k // 2) // (k * k)
    return reduced


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
