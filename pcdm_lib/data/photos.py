"""Patches of the photographs inside the scikit-image package: no download, split by photograph."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from pcdm_lib.data.images import ImageData, box_reduce, count, grid, image_data, spread

# The photographs of the scikit-image wheel, sha256 of each file. Six of its nine colour
# photographs: left out are rocket.jpg and hubble_deep_field.jpg (nearly all dark sky) and
# retina.jpg (black surround, one colour); being JPEGs, their pixels would depend on the decoder's
# version too. color.png is a drawing. The two motorcycles are a stereo pair, one scene: both must
# lie on the same side of the split. Held out are an animal and a still life, neither of which the
# training side shows.
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
# 32x32 pixels of a full-size photograph are blur; at a third or a quarter they show parts of
# things, as CIFAR does.
REDUCTIONS = (3, 4)
REDUCTIONS_UP_TO = 64  # chelsea.png at a quarter is 112x75
LARGE_REDUCTIONS = (1, 2)
PHOTOS_MAX_SIZE = 128  # chelsea.png at a half is 225x150


# Photographs
def _load_photos(size: int, limit: int | None) -> ImageData:
    if size > PHOTOS_MAX_SIZE:
        raise ValueError(
            f"photos give patches of at most {PHOTOS_MAX_SIZE} pixels, got size={size}: use "
            f"crops:PATH"
        )
    # At 32x32: steps of 6 between patches to train on, 12 between held-out ones. Smaller patches
    # keep the step of 6, or there would be 10^5 of them.
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
    return image_data(
        "photos",
        label,
        train,
        heldout,
        folder="skimage/data",
        files=files,
        reductions=list(reductions),
    )


def _photo_patches(
    photos: dict[str, str], reductions: tuple[int, ...], size: int, stride: int
) -> np.ndarray:
    """Patches (N, 3, size, size) of the named photographs at every reduction, on a grid of step
    `stride`."""
    reduced = [
        box_reduce(_read_photo(name, digest), k)
        for name, digest in photos.items()
        for k in reductions
    ]
    return np.concatenate([grid(image, size, stride) for image in reduced])


def _read_photo(name: str, digest: str) -> np.ndarray:
    """One photograph (H, W, 3) out of the installed scikit-image, without importing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            'photos come with scikit-image, which is not installed: pip install "pcdm-lib[photos]"'
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no such file"
    if found != digest:
        raise FileNotFoundError(
            f"{path}: expected sha256 {digest}, found {found}: install scikit-image 0.24 to 0.26, "
            f"whose wheels hold it"
        )
    with Image.open(path) as image:
        return np.asarray(image)
