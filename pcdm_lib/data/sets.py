"""Image datasets as uint8 tensors.

`load_data` is the one way in. It knows the photographs that come with scikit-image (nothing to
download), CIFAR-10 in its official binary format, SVHN, ImageNet at 32, 64 and 128 pixels, a folder
of images, crops of large photographs, and images that are no photographs: spectrograms and a tissue
section (domains.py).

Every dataset carries the label that figures and result files print. So a number measured on a part
of a dataset never reads as one measured on all of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pcdm_lib.data import crops, domains, imagenet, svhn
from pcdm_lib.data.cifar import _load_cifar10
from pcdm_lib.data.crops import _load_folder
from pcdm_lib.data.download import CIFAR_ARCHIVE, CIFAR_FOLDER
from pcdm_lib.data.images import (
    TRANSPARENCY,
    UNREADABLE,
    ImageData,
    beyond_rgb,
    box_reduce,
    check_input,
    in_rgb,
    opened_image,
    pixels_of,
)
from pcdm_lib.data.paths import data_folder, located
from pcdm_lib.data.photos import _load_photos, _read_photo

NAMES = (
    "auto",
    "photos",
    "cifar10",
    *svhn.NAMES,
    *domains.NAMES,
    *imagenet.NAMES,
    *crops.NAMES,
    "folder:PATH",
)


def load_data(
    name: str = "auto",
    *,
    root: str | Path | None = None,
    size: int | None = None,
    heldout_limit: int | None = None,
    download: bool = True,
) -> ImageData:
    """Load a dataset of size x size images.

    Args:
        name: "photos", "cifar10", "svhn", "spectrograms", "histology", "imagenet32-old",
            "imagenet32-new", "imagenet64-old", "imagenet64-new", "imagenet128:PATH", "folder:PATH",
            "crops:PATH?train=random&count=2000&margin=16&seed=0" (its options as by default), or
            "auto": CIFAR-10 where the data folder holds it, else the photographs (print `.label` to
            see which). "auto" never downloads and never hides a broken CIFAR-10.
        root: the data folder, see `data_folder`.
        size: 32 by default, for ImageNet the size that its name says.
        heldout_limit: keep at most the first so many held-out images; the label says so.
        download: whether "cifar10" or "svhn", asked for by name and not in the data folder, may be
            fetched.

    Returns:
        Training and held-out images, uint8 (N, C, size, size), with a label and their sources.

    Raises:
        ValueError: for a wrong argument or broken data.
        FileNotFoundError: for missing data.
        ConnectionError: within seconds, where the download does not work.
        OSError: where ImageNet's images, which are decoded once, cannot be written beside their
            source.

    Example:
        >>> photos = pcdm.load_data("photos", size=32)
        >>> photos.train.shape[1:], photos.heldout.dtype
        (torch.Size([3, 32, 32]), torch.uint8)
    """
    for key, value in (("size", size), ("heldout_limit", heldout_limit)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
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
        return domains.load_histology(
            _read_photo(domains.SLIDE, domains.SLIDE_SHA256), size or 32, heldout_limit
        )
    if name in imagenet.SETS or name in imagenet.AMBIGUOUS:
        return imagenet.load(name, folder, size, heldout_limit)
    kind, _, path = name.partition(":")
    if path and kind == "imagenet128":
        return imagenet.load_folder(located(path), size, heldout_limit)
    if path and kind == "crops":
        return crops.load(path, size or 32, heldout_limit)
    if path and kind == "folder":
        return _load_folder(located(path), size or 32, heldout_limit)
    raise ValueError(f"unknown dataset {name!r}: expected one of {', '.join(NAMES)}")


def read_square(path: str | Path, size: int = 32) -> torch.Tensor:
    """Any 8-bit PNG, JPEG or WebP as one uint8 image (1, 3, size, size): turned upright, the
    largest square in its middle whose side is a multiple of `size`, reduced by box means as the
    photographs are. Transparency is laid on white.

    Raises:
        ValueError: naming the file, where it cannot be read, has other than 8 bits a channel, or is
            smaller than size x size.
    """
    path = located(path)
    check_input(path)
    try:
        with path.open("rb") as file, opened_image(file) as image:
            what = beyond_rgb(image, file)
            on_white = what == TRANSPARENCY
            pixels = (
                None
                if what and not on_white
                else pixels_of(image, _on_white if on_white else in_rgb, upright=True)
            )
    except UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read as PNG, JPEG or WebP ({error}): give another file"
        ) from error
    if pixels is None:
        raise ValueError(f"{path} has {what}, expected one 8-bit image, colour or gray: convert it")
    height, width = pixels.shape[:2]
    factor = min(height, width) // size
    if factor == 0:
        raise ValueError(
            f"{path} is {width}x{height} pixels, expected at least {size}x{size}: give a larger one"
        )
    top, left = (height - factor * size) // 2, (width - factor * size) // 2
    square = box_reduce(pixels[top : top + factor * size, left : left + factor * size], factor)
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)))[None]


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


# Images of no kind, to score beside real ones

MID_GREY = 128


def constant_images(n: int, shape: tuple[int, int, int], value: int = MID_GREY) -> torch.Tensor:
    """n uint8 images (n, *shape) whose every byte is `value`, all of them alike.

    Mid grey is the zero vector of images scaled to [-1, 1], which is the paper's constant set
    (Appendix B.1). It lies at 127.5, which is no byte, so 128 is taken.
    """
    _check_request(n, shape)
    if not 0 <= value <= 255:
        raise ValueError(f"value={value}: expected 0 to 255")
    return torch.full((n, *shape), value, dtype=torch.uint8)


def uniform_images(n: int, shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """n uint8 images (n, *shape) whose bytes are independent and uniform: 8 bits a dimension is the
    least that they cost on average."""
    _check_request(n, shape)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8))


def _check_request(n: int, shape: tuple[int, int, int]) -> None:
    if n < 1 or len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"n={n}, shape={tuple(shape)}: expected at least one image, and its channels, height "
            f"and width"
        )
