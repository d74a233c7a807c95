"""Image datasets as uint8 tensors.

`load` is the one way in: photographs that come with scikit-image (nothing to fetch), CIFAR-10 in its
official binary format, or a folder of images. Every dataset carries the label that figures and result
files print, so that a number measured on a part of a dataset never reads as one measured on all of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

from pcdm_lib.download import CIFAR_ARCHIVE, CIFAR_FOLDER, CIFAR_TEST, CIFAR_TRAIN, by_hand, fetch, unpack

NAMES = ("auto", "photos", "cifar10", "folder:PATH")

CIFAR_RECORD, CIFAR_BATCH = 1 + 3 * 32 * 32, 10_000  # bytes a record (label, then pixels); records a file

# The photographs of the scikit-image wheel, sha256 of each file. Six of its nine colour photographs: left out
# are rocket.jpg and hubble_deep_field.jpg (nearly all dark sky) and retina.jpg (black surround, one colour);
# being JPEGs, their pixels would depend on the decoder's version too. color.png is a drawing.
# The two motorcycles are a stereo pair, one scene: both must lie on the same side of the split. Held out are an
# animal and a still life, neither of which the training side shows.
TRAIN_PHOTOS = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "motorcycle_right.png": "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797",
}
HELDOUT_PHOTOS = {
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
}
COLOUR_PHOTOS = 9
# 32x32 pixels of a full-size photograph are blur; at a third or a quarter they show parts of things, as CIFAR does.
REDUCTIONS = (3, 4)
PHOTOS_MAX_SIZE = 64  # chelsea.png at a quarter is 112x75


@dataclass(frozen=True)
class ImageData:
    """One dataset: uint8 images (N, C, H, W) to train on and (M, C, H, W) held out."""

    name: str  # "photos", "cifar10" or "folder"
    label: str  # what figures and files say the numbers were measured on
    train: torch.Tensor
    heldout: torch.Tensor
    source: dict  # JSON-able: folder, files, counts, sha256 of the bytes of both tensors


def data_folder(root: str | Path | None = None) -> Path:
    """Where datasets lie: `root`, else the environment variable PCDM_DATA, else ./data."""
    return Path(root or os.environ.get("PCDM_DATA") or "data").expanduser()


def load(
    name: str = "auto",
    *,
    root: str | Path | None = None,
    size: int = 32,
    heldout_limit: int | None = None,
    download: bool = True,
) -> ImageData:
    """Load a dataset of size x size images.

    name: "photos", "cifar10", "folder:PATH", or "auto": CIFAR-10 where the data folder holds it, else the
        photographs (print `.label` to see which). "auto" never downloads and never hides a broken CIFAR-10.
    root: the data folder, see `data_folder`.
    heldout_limit: keep at most the first so many held-out images; the label says so.
    download: whether "cifar10", asked for by name and not in the data folder, may be fetched.

    Raises ValueError for a wrong argument or broken data, FileNotFoundError for missing data and
    ConnectionError (within seconds) where the download does not work.
    """
    for key, value in (("size", size), ("heldout_limit", 1 if heldout_limit is None else heldout_limit)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value!r}: expected a positive integer")
    folder = data_folder(root)
    if name == "auto":
        present = (folder / CIFAR_FOLDER).exists() or (folder / CIFAR_ARCHIVE).exists()
        name = "cifar10" if present else "photos"  # so there is nothing left to download
    if name == "photos":
        return _load_photos(size, heldout_limit)
    if name == "cifar10":
        return _load_cifar10(folder, size, heldout_limit, download)
    if name.startswith("folder:") and name != "folder:":
        return _load_folder(Path(name.removeprefix("folder:")).expanduser(), size, heldout_limit)
    raise ValueError(f"unknown dataset {name!r}: expected one of {', '.join(NAMES)}")


def _image_data(name: str, label: str, train: np.ndarray, heldout: np.ndarray, **source) -> ImageData:
    """Freeze arrays (N, C, H, W) as tensors and add the facts that every source has."""
    train, heldout = np.ascontiguousarray(train), np.ascontiguousarray(heldout)
    source |= {
        "train_count": len(train),
        "heldout_count": len(heldout),
        "train_sha256": hashlib.sha256(train).hexdigest(),
        "heldout_sha256": hashlib.sha256(heldout).hexdigest(),
    }
    return ImageData(name, label, torch.from_numpy(train), torch.from_numpy(heldout), source)


def _count(kept: int, total: int) -> str:
    return f"{kept}" if kept == total else f"first {kept} of {total}"


# Photographs


def _load_photos(size: int, limit: int | None) -> ImageData:
    if size > PHOTOS_MAX_SIZE:
        raise ValueError(f"photos give patches of at most {PHOTOS_MAX_SIZE} pixels, got size={size}: use folder:PATH")
    # At 32x32: steps of 6 between patches to train on, 12 between held-out ones. Smaller patches keep
    # the step of 6, or there would be 10^5 of them.
    train = _photo_patches(TRAIN_PHOTOS, size, max(6, size * 3 // 16))
    heldout = _photo_patches(HELDOUT_PHOTOS, size, max(6, size * 3 // 8))
    total = len(heldout)
    heldout = heldout[_spread(total)][:limit]
    used = len(TRAIN_PHOTOS) + len(HELDOUT_PHOTOS)
    label = (
        f"photos{size}: {used} of {COLOUR_PHOTOS} scikit-image colour photographs, "
        f"{len(train)} train / {_count(len(heldout), total)} held-out {size}x{size} patches"
    )
    files = {"train": sorted(TRAIN_PHOTOS), "heldout": sorted(HELDOUT_PHOTOS)}
    return _image_data("photos", label, train, heldout, folder="skimage/data", files=files, reductions=list(REDUCTIONS))


def _photo_patches(photos: dict[str, str], size: int, stride: int) -> np.ndarray:
    """Patches (N, 3, size, size) of the named photographs at every reduction, on a grid of step `stride`."""
    reduced = [_box_reduce(_read_photo(name, digest), k) for name, digest in photos.items() for k in REDUCTIONS]
    return np.concatenate([_grid(image, size, stride) for image in reduced])


def _read_photo(name: str, digest: str) -> np.ndarray:
    """One photograph (H, W, 3) out of the installed scikit-image, without importing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("photos come with scikit-image, which is not installed: pip install scikit-image")
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no such file"
    if found != digest:
        raise FileNotFoundError(
            f"{path}: expected sha256 {digest}, found {found}: install scikit-image 0.24 to 0.26, whose wheels hold it"
        )
    with Image.open(path) as image:
        return np.asarray(image)


def _box_reduce(image: np.ndarray, k: int) -> np.ndarray:
    """(H, W, 3) -> (H // k, W // k, 3): rounded means of k x k blocks, in integers: the same on every machine."""
    height, width = image.shape[0] // k, image.shape[1] // k
    blocks = image[: height * k, : width * k].astype(np.uint32).reshape(height, k, width, k, 3)
    return ((blocks.sum((1, 3), dtype=np.uint32) + k * k // 2) // (k * k)).astype(np.uint8)


def _grid(image: np.ndarray, size: int, stride: int) -> np.ndarray:
    """All size x size patches (N, 3, size, size) of an image (H, W, 3), in steps of `stride` from the top left."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    return windows[::stride, ::stride].reshape(-1, 3, size, size)


def _spread(n: int) -> np.ndarray:
    """An order of range(n) whose every beginning is spread over the whole, so that a limit keeps some of everything."""
    step = max(1, round(n * 0.6180339887))
    while np.gcd(step, n) != 1:
        step += 1
    return np.arange(n) * step % n


# CIFAR-10


def _load_cifar10(folder: Path, size: int, limit: int | None, download: bool) -> ImageData:
    if size != 32:
        raise ValueError(f"CIFAR-10 images are 32x32, got size={size}: use size=32, or load('photos', size={size})")
    batches, archive = folder / CIFAR_FOLDER, folder / CIFAR_ARCHIVE
    if not batches.exists():
        if not archive.exists():
            if not download:
                missing = f"no {CIFAR_FOLDER}/ or {CIFAR_ARCHIVE} in {folder.resolve()}"
                raise FileNotFoundError(f"{missing}: {by_hand(folder)}")
            fetch(archive)
        unpack(archive, batches)
    train = np.concatenate([_read_batch(batches / name) for name in CIFAR_TRAIN])
    heldout = _read_batch(batches / CIFAR_TEST)[:limit]
    full = len(CIFAR_TRAIN) * CIFAR_BATCH
    label = "CIFAR-10"
    if (len(train), len(heldout)) != (full, CIFAR_BATCH):
        # A cut training set holds the beginning of each of five files, so it is not "the first" of the 50000.
        some = f"{full}" if len(train) == full else f"{len(train)} of {full}"
        label += f" ({some} train, {_count(len(heldout), CIFAR_BATCH)} test images)"
    return _image_data("cifar10", label, train, heldout, folder=str(batches.resolve()), files=[*CIFAR_TRAIN, CIFAR_TEST])


def _read_batch(path: Path) -> np.ndarray:
    """The images (N, 3, 32, 32) of one binary file; a file cut short between two records is fine."""
    advice = f"delete {path.parent} and unpack {CIFAR_ARCHIVE} again"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, expected {', '.join((*CIFAR_TRAIN, CIFAR_TEST))}: {advice}")
    data = np.fromfile(path, np.uint8)
    if not 0 < data.size <= CIFAR_BATCH * CIFAR_RECORD or data.size % CIFAR_RECORD:
        expected = f"1 to {CIFAR_BATCH} records of {CIFAR_RECORD} bytes"
        raise ValueError(f"{path} has {data.size} bytes, expected {expected} (label and 3x32x32 pixels): {advice}")
    records = data.reshape(-1, CIFAR_RECORD)
    if records[:, 0].max() > 9:
        first = int(np.argmax(records[:, 0] > 9))
        raise ValueError(
            f"{path}: record {first} has label {records[first, 0]}, expected 0 to 9 "
            f"(one label byte, as in CIFAR-10's binary format): {advice}"
        )
    return records[:, 1:].reshape(-1, 3, 32, 32)


# A folder of images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TRANSPARENCY = "transparency"


def _load_folder(folder: Path, size: int, limit: int | None) -> ImageData:
    """Non-overlapping patches of every image; the last tenth of the files, in sorted order, is held out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give folder:PATH a folder of PNG, JPEG or WebP images")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = sorted(path.relative_to(folder).as_posix() for path in found if not path.name.startswith("."))
    if len(files) < 2:
        raise ValueError(
            f"{folder} holds {len(files)} images ({', '.join(SUFFIXES)}), expected at least 2, "
            "one to train on and one to hold out: add images"
        )
    split = len(files) - max(1, len(files) // 10)

    def patches(names: list[str]) -> np.ndarray:
        return np.concatenate([_grid(_read_rgb(folder / name, size), size, size) for name in names])

    train, heldout = patches(files[:split]), patches(files[split:])
    total = len(heldout)
    heldout = heldout[:limit]
    label = (
        f"folder {folder.resolve().name}: {split} train / {len(files) - split} held-out images, "
        f"{len(train)} train / {_count(len(heldout), total)} held-out {size}x{size} patches"
    )
    counts = {"train": split, "heldout": len(files) - split, "first_heldout": files[split]}
    return _image_data("folder", label, train, heldout, folder=str(folder.resolve()), files=counts)


def _read_rgb(path: Path, size: int) -> np.ndarray:
    """One 8-bit image file as (H, W, 3), gray and palette spread to RGB; what RGB cannot hold is an error."""
    try:
        with path.open("rb") as file, Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            what = _beyond_rgb(image, file)
            pixels = None if what else np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as PNG, JPEG or WebP ({error}): repair or remove it") from error
    if what:
        raise ValueError(f"{path} has {what}, expected one 8-bit RGB, gray or palette image: convert or remove it")
    height, width = pixels.shape[:2]
    if min(height, width) < size:
        raise ValueError(
            f"{path} is {width}x{height} pixels, expected at least {size}x{size}: remove it or choose a smaller size"
        )
    return pixels


def _beyond_rgb(image: Image.Image, file: BinaryIO) -> str | None:
    """What an open image has that 8-bit RGB would lose without a word, or None."""
    if image.format == "PNG":  # Pillow cuts 16-bit colour to 8 bits: ask the header, whose byte 24 is the depth
        here = file.tell()
        file.seek(24)
        depth = file.read(1)[0]
        file.seek(here)
        if depth > 8:
            return f"{depth} bits a channel"
    if image.has_transparency_data:
        return TRANSPARENCY
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:  # a JPEG's further frames are previews
        return f"{image.n_frames} frames"
    return None if image.mode in ("1", "L", "P", "RGB") else f"mode {image.mode}"


# One image of the reader's


def read_square(path: str | Path, size: int = 32) -> torch.Tensor:
    """Any 8-bit PNG, JPEG or WebP as one uint8 image (1, 3, size, size): turned upright, the largest square in its middle whose side is a
    multiple of `size`, reduced by box means as the photographs are. Transparency is laid on white.

    Raises ValueError naming the file where it cannot be read, has other than 8 bits a channel, or is smaller than size x size.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file, Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            what, flat = _beyond_rgb(image, file), image
            if what == TRANSPARENCY:
                rgba, what = image.convert("RGBA"), None
                flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            pixels = None if what else np.asarray(ImageOps.exif_transpose(flat).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as PNG, JPEG or WebP ({error}): give another file") from error
    if what:
        raise ValueError(f"{path} has {what}, expected one 8-bit image, colour or gray: convert it")
    height, width = pixels.shape[:2]
    factor = min(height, width) // size
    if factor == 0:
        raise ValueError(f"{path} is {width}x{height} pixels, expected at least {size}x{size}: give a larger one")
    top, left = (height - factor * size) // 2, (width - factor * size) // 2
    square = _box_reduce(pixels[top : top + factor * size, left : left + factor * size], factor)
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)))[None]
