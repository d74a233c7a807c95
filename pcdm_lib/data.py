"""Image datasets as uint8 tensors.

`load` is the one way in: photographs that come with scikit-image (nothing to fetch), CIFAR-10 in its
official binary format, SVHN, ImageNet at 32, 64 and 128 pixels, a folder of images, crops of large
photographs, or what is no photograph: spectrograms and a tissue section (domains.py). Every dataset
carries the label that figures and result files print, so that a number measured on a part of a dataset
never reads as one measured on all of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from pcdm_lib import crops, domains, imagenet, svhn
from pcdm_lib.download import CIFAR10, CIFAR_ARCHIVE, CIFAR_FOLDER, CIFAR_TEST, CIFAR_TRAIN, fetch, unpack
from pcdm_lib.images import (
    TRANSPARENCY, ImageData, beyond_rgb, box_reduce, count, data_folder, grid, image_data, read_rgb, split_files, spread,
)
from pcdm_lib.svhn import load_svhn

__all__ = ["NAMES", "ImageData", "constant_images", "data_folder", "load", "load_svhn", "read_square", "uniform_images"]

NAMES = ("auto", "photos", "cifar10", *svhn.NAMES, *domains.NAMES, *imagenet.NAMES, *crops.NAMES, "folder:PATH")

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
REDUCTIONS_UP_TO = 64  # chelsea.png at a quarter is 112x75
LARGE_REDUCTIONS = (1, 2)
PHOTOS_MAX_SIZE = 128  # chelsea.png at a half is 225x150


def load(
    name: str = "auto",
    *,
    root: str | Path | None = None,
    size: int | None = None,
    heldout_limit: int | None = None,
    download: bool = True,
) -> ImageData:
    """Load a dataset of size x size images.

    name: "photos", "cifar10", "svhn", "spectrograms", "histology", "imagenet32-old", "imagenet32-new", "imagenet64-old", "imagenet64-new",
        "imagenet128:PATH", "folder:PATH", "crops:PATH?train=random&count=2000&margin=16&seed=0" (its options as by default), or "auto": CIFAR-10 where
        the data folder holds it, else the photographs (print `.label` to see which). "auto" never downloads and never hides a
        broken CIFAR-10.
    root: the data folder, see `data_folder`.
    size: 32 by default, for ImageNet the size that its name says.
    heldout_limit: keep at most the first so many held-out images; the label says so.
    download: whether "cifar10" or "svhn", asked for by name and not in the data folder, may be fetched.

    Raises ValueError for a wrong argument or broken data, FileNotFoundError for missing data, ConnectionError (within seconds) where
    the download does not work, and OSError where ImageNet's images, which are decoded once, cannot be written beside their source.
    """
    for key, value in (("size", size), ("heldout_limit", heldout_limit)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{key}={value!r}: expected a positive integer")
    folder = data_folder(root)
    if name == "auto":
        present = (folder / CIFAR_FOLDER).exists() or (folder / CIFAR_ARCHIVE).exists()
        name = "cifar10" if present else "photos"  # so there is nothing left to download
    if name == "photos":
        return _load_photos(size or 32, heldout_limit)
    if name == "cifar10":
        return _load_cifar10(folder, size or 32, heldout_limit, download)
    if name == "svhn":
        return svhn.load(folder, size or 32, heldout_limit, download)
    if name == "spectrograms":
        return domains.load_spectrograms(size or 32, heldout_limit)
    if name == "histology":
        return domains.load_histology(_read_photo(domains.SLIDE, domains.SLIDE_SHA256), size or 32, heldout_limit)
    if name in imagenet.SETS or name in imagenet.AMBIGUOUS:
        return imagenet.load(name, folder, size, heldout_limit)
    kind, _, path = name.partition(":")
    if path and kind == "imagenet128":
        return imagenet.load_folder(Path(path).expanduser(), size, heldout_limit)
    if path and kind == "crops":
        return crops.load(path, size or 32, heldout_limit)
    if path and kind == "folder":
        return _load_folder(Path(path).expanduser(), size or 32, heldout_limit)
    raise ValueError(f"unknown dataset {name!r}: expected one of {', '.join(NAMES)}")


# Photographs


def _load_photos(size: int, limit: int | None) -> ImageData:
    if size > PHOTOS_MAX_SIZE:
        raise ValueError(f"photos give patches of at most {PHOTOS_MAX_SIZE} pixels, got size={size}: use crops:PATH")
    # At 32x32: steps of 6 between patches to train on, 12 between held-out ones. Smaller patches keep
    # the step of 6, or there would be 10^5 of them.
    reductions = REDUCTIONS if size <= REDUCTIONS_UP_TO else LARGE_REDUCTIONS
    train = _photo_patches(TRAIN_PHOTOS, reductions, size, max(6, size * 3 // 16))
    heldout = _photo_patches(HELDOUT_PHOTOS, reductions, size, max(6, size * 3 // 8))
    total = len(heldout)
    heldout = heldout[spread(total)][:limit]
    used = len(TRAIN_PHOTOS) + len(HELDOUT_PHOTOS)
    label = (
        f"photos{size}: {used} of {COLOUR_PHOTOS} scikit-image colour photographs, "
        f"{len(train)} train / {count(len(heldout), total)} held-out {size}x{size} patches"
    )
    files = {"train": sorted(TRAIN_PHOTOS), "heldout": sorted(HELDOUT_PHOTOS)}
    return image_data("photos", label, train, heldout, folder="skimage/data", files=files, reductions=list(reductions))


def _photo_patches(photos: dict[str, str], reductions: tuple[int, ...], size: int, stride: int) -> np.ndarray:
    """Patches (N, 3, size, size) of the named photographs at every reduction, on a grid of step `stride`."""
    reduced = [box_reduce(_read_photo(name, digest), k) for name, digest in photos.items() for k in reductions]
    return np.concatenate([grid(image, size, stride) for image in reduced])


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


# CIFAR-10


def _load_cifar10(folder: Path, size: int, limit: int | None, download: bool) -> ImageData:
    if size != 32:
        raise ValueError(f"CIFAR-10 images are 32x32, got size={size}: use size=32, or load('photos', size={size})")
    batches, archive = folder / CIFAR_FOLDER, folder / CIFAR_ARCHIVE
    if not batches.exists():
        if not archive.exists():
            if not download:
                missing = f"no {CIFAR_FOLDER}/ or {CIFAR_ARCHIVE} in {folder.resolve()}"
                raise FileNotFoundError(f"{missing}: {CIFAR10.by_hand(folder)}")
            fetch(CIFAR10, archive)
        unpack(CIFAR10, archive, batches)
    train = np.concatenate([_read_batch(batches / name) for name in CIFAR_TRAIN])
    heldout = _read_batch(batches / CIFAR_TEST)[:limit]
    full = len(CIFAR_TRAIN) * CIFAR_BATCH
    label = "CIFAR-10"
    if (len(train), len(heldout)) != (full, CIFAR_BATCH):
        # A cut training set holds the beginning of each of five files, so it is not "the first" of the 50000.
        some = f"{full}" if len(train) == full else f"{len(train)} of {full}"
        label += f" ({some} train, {count(len(heldout), CIFAR_BATCH)} test images)"
    return image_data("cifar10", label, train, heldout, folder=str(batches.resolve()), files=[*CIFAR_TRAIN, CIFAR_TEST])


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


def _load_folder(folder: Path, size: int, limit: int | None) -> ImageData:
    """Non-overlapping patches of every image; the last tenth of the files, in sorted order, is held out."""
    train_files, heldout_files = split_files(folder, "folder:")

    def patches(names: list[str]) -> np.ndarray:
        return np.concatenate([grid(read_rgb(folder / name, size), size, size) for name in names])

    train, heldout = patches(train_files), patches(heldout_files)
    total = len(heldout)
    heldout = heldout[:limit]
    label = (
        f"folder {folder.resolve().name}: {len(train_files)} train / {len(heldout_files)} held-out images, "
        f"{len(train)} train / {count(len(heldout), total)} held-out {size}x{size} patches"
    )
    counts = {"train": len(train_files), "heldout": len(heldout_files), "first_heldout": heldout_files[0]}
    return image_data("folder", label, train, heldout, folder=str(folder.resolve()), files=counts)


# One image of the reader's


def read_square(path: str | Path, size: int = 32) -> torch.Tensor:
    """Any 8-bit PNG, JPEG or WebP as one uint8 image (1, 3, size, size): turned upright, the largest square in its middle whose side is a
    multiple of `size`, reduced by box means as the photographs are. Transparency is laid on white.

    Raises ValueError naming the file where it cannot be read, has other than 8 bits a channel, or is smaller than size x size.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file, Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            what, flat = beyond_rgb(image, file), image
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
    square = box_reduce(pixels[top : top + factor * size, left : left + factor * size], factor)
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)))[None]


# Images of no kind, to score beside real ones


def constant_images(n: int, shape: tuple[int, int, int], value: int = 0) -> torch.Tensor:
    """n uint8 images (n, *shape) whose every byte is `value`."""
    _check_request(n, shape)
    if not 0 <= value <= 255:
        raise ValueError(f"value={value}: expected 0 to 255")
    return torch.full((n, *shape), value, dtype=torch.uint8)


def uniform_images(n: int, shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """n uint8 images (n, *shape) whose bytes are independent and uniform: 8 bits a dimension is the least that they cost on average."""
    _check_request(n, shape)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8))


def _check_request(n: int, shape: tuple[int, int, int]) -> None:
    if n < 1 or len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"n={n}, shape={tuple(shape)}: expected at least one image, and its channels, height and width")
