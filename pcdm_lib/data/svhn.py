"""SVHN's cropped digits (Netzer et al. 2011) in the official MATLAB files: a set of its own, and
one from outside the distribution of others.

Non-commercial use only, says http://ufldl.stanford.edu/housenumbers/.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from pcdm_lib.data.download import PublishedFile, fetch
from pcdm_lib.data.images import ImageData, as_tensor, count, image_data
from pcdm_lib.data.matlab import read_matlab
from pcdm_lib.data.paths import data_folder

NAMES = ("svhn",)
FOLDER = "svhn"
COUNTS = {"train": 73_257, "test": 26_032}
# The md5 are those by which torchvision, too, knows the files.
FILES = {
    split: PublishedFile(
        title=f"SVHN ({split})",
        name=f"{split}_32x32.mat",
        url=f"http://ufldl.stanford.edu/housenumbers/{split}_32x32.mat",
        md5=md5,
        bytes=size,
    )
    for split, md5, size in (
        ("train", "e26dedcc434d2e4c54c9b2d4a06d8373", 182_040_794),
        ("test", "eb5a983be6a315427106f1b164d9cef3", 64_275_384),
    )
}


def load(root: Path, size: int, limit: int | None, download: bool) -> ImageData:
    """Both files: `train` to train on, `test` held out."""
    if size != 32:
        raise ValueError(f"SVHN images are 32x32, got size={size}: use size=32")
    paths = {split: _find(root, split, download) for split in COUNTS}
    train, heldout = _read(paths["train"], "train"), _read(paths["test"], "test")[:limit]
    label = "SVHN"
    if (len(train), len(heldout)) != (COUNTS["train"], COUNTS["test"]):
        label += (
            f" ({count(len(train), COUNTS['train'])} train, "
            f"{count(len(heldout), COUNTS['test'])} test images)"
        )
    folder = str(paths["train"].parent.resolve())
    return image_data(
        "svhn", label, train, heldout, folder=folder, files=[path.name for path in paths.values()]
    )


def load_svhn(
    root: str | Path | None = None, split: str = "test", limit: int | None = None
) -> tuple[torch.Tensor, str]:
    """At most the first `limit` images of one file, uint8 (N, 3, 32, 32), and the label to print
    beside what is measured on them.

    Downloads nothing.

    Args:
        root: the data folder, see `data_folder`.
        split: "train" or "test".
        limit: the largest number of images; None for all.

    Raises:
        ValueError: for a wrong argument or a broken file.
        FileNotFoundError: for a missing file.
    """
    if split not in COUNTS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(COUNTS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected a positive integer, or None for all images")
    images = _read(_find(data_folder(root), split, download=False), split)[:limit]
    return as_tensor(
        np.ascontiguousarray(images)
    ), f"SVHN ({count(len(images), COUNTS[split])} {split} images)"


def _find(root: Path, split: str, download: bool) -> Path:
    """Where a file lies; fetched into the folder svhn/ where it is missing and may be."""
    published = FILES[split]
    for folder in (root / FOLDER, root):
        if (folder / published.name).exists():
            return folder / published.name
    if not download:
        missing = f"no {published.name} in {(root / FOLDER).resolve()} or {root.resolve()}"
        raise FileNotFoundError(f"{missing}: {published.by_hand(root / FOLDER)}")
    fetch(published, root / FOLDER / published.name)
    return root / FOLDER / published.name


def _read(path: Path, split: str) -> np.ndarray:
    """The images (N, 3, 32, 32) of one file; one that holds only the first of them is fine."""
    advice = f"delete it, then {FILES[split].by_hand(path.parent)}"
    try:
        variables = read_matlab(path, {"X": 3072 * COUNTS[split]})
    except ValueError as error:
        raise ValueError(
            f"{path} is cut short or no MATLAB file of version 5 ({error}): {advice}"
        ) from error
    if "X" not in variables:
        raise ValueError(
            f"{path} has no variable X, expected the images of SVHN's cropped digits there: "
            f"{advice}"
        )
    kind, shape, images = variables["X"]
    if (
        images is None
        or len(shape) != 4
        or shape[:3] != (32, 32, 3)
        or not 1 <= shape[3] <= COUNTS[split]
    ):
        expected = f"uint8 (32, 32, 3, N), N from 1 to {COUNTS[split]}"
        raise ValueError(f"{path} has X of {kind} {shape}, expected {expected}: {advice}")
    if "y" in variables and math.prod(variables["y"].shape) != shape[3]:
        raise ValueError(
            f"{path} has {shape[3]} images and {math.prod(variables['y'].shape)} labels, expected "
            f"as many: {advice}"
        )
    return images.transpose(3, 2, 0, 1)
