"""Square crops of large photographs, away from their borders: any size, from few files."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pcdm_lib.data.found import split_files
from pcdm_lib.data.images import ImageData, count, grid, image_data, read_rgb, spread
from pcdm_lib.data.paths import located

NAMES = ("crops:PATH",)


@dataclass(frozen=True)
class Options:
    """What may follow the folder's path, as `?train=random&count=2000&margin=16&seed=0`."""

    train: str = "random"  # or "grid": non-overlapping, as the held-out ones are
    count: int = 2000  # random crops of all training files together
    # pixels along every border that no crop shows: scans and cameras leave their marks there
    margin: int = 16
    seed: int = 0  # of the random crops


def parse(text: str) -> tuple[Path, Options]:
    """The folder and the options of PATH?key=value&key=value."""
    path, _, asked = text.partition("?")
    known = [field.name for field in fields(Options)]
    given: dict[str, Any] = {}
    for item in asked.split("&") if asked else ():
        key, equals, value = item.partition("=")
        if key not in known or not equals or key in given:
            what = f"{key} twice" if key in given else f"{item!r}"
            raise ValueError(
                f"crops:{text} has {what}, expected crops:PATH?key=value&key=value with the keys "
                f"{', '.join(known)}"
            )
        if key == "train":
            if value not in ("random", "grid"):
                raise ValueError(f"crops:{text} has train={value!r}, expected random or grid")
            given[key] = value
            continue
        least = 1 if key == "count" else 0
        if not (value.isascii() and value.isdigit() and int(value) >= least):
            raise ValueError(
                f"crops:{text} has {key}={value!r}, expected an integer of at least {least}"
            )
        given[key] = int(value)
    return located(path), Options(**given)


def load(text: str, size: int, limit: int | None) -> ImageData:
    """Crops of size x size pixels; the last tenth of the files, in sorted order, is held out.

    Held out are all non-overlapping crops of those files, in an order whose every beginning is
    spread over them all.
    """
    folder, options = parse(text)
    split = split_files(folder, "crops:")
    train_files, heldout_files = split.train, split.heldout

    def inner(name: str) -> np.ndarray:
        """A photograph (H, W, 3) without its margin."""
        advice = f"remove it, or choose a smaller size than {size} or margin than {options.margin}"
        pixels, margin = read_rgb(folder / name, size + 2 * options.margin, advice), options.margin
        return pixels[margin : pixels.shape[0] - margin, margin : pixels.shape[1] - margin]

    def tiles(names: list[str]) -> np.ndarray:
        return np.concatenate([grid(inner(name), size, size) for name in names])

    if options.train == "grid":
        train, how = tiles(train_files), "non-overlapping"
    else:
        shares = _shares(options.count, len(train_files), options.seed)
        # a stream for each file: which crops it gives depends on no other file's size
        train = np.concatenate(
            [
                _random(inner(name), size, share, np.random.default_rng([options.seed, i]))
                for i, (name, share) in enumerate(zip(train_files, shares))
                if share
            ]
        )
        how = f"random (seed {options.seed})"
    heldout = tiles(heldout_files)
    total = len(heldout)
    heldout = heldout[spread(total)][:limit]
    label = (
        f"crops of {folder.resolve().name}: {len(train_files)} train / {len(heldout_files)} "
        f"held-out photographs, {len(train)} {how} train / "
        f"{count(len(heldout), total)} held-out {size}x{size} crops, {options.margin} pixels or "
        f"more from the border" + (f"; {split.notes}" if split.notes else "")
    )
    counts = {
        "train": len(train_files),
        "heldout": len(heldout_files),
        "first_heldout": heldout_files[0],
    }
    asked = {field.name: getattr(options, field.name) for field in fields(Options)}
    return image_data(
        "crops", label, train, heldout, folder=str(folder.resolve()), files=counts, options=asked
    )


def _shares(total: int, files: int, seed: int) -> np.ndarray:
    """How many of `total` crops each file gives: as many as any other, or one more."""
    shares = np.full(files, total // files)
    shares[np.random.default_rng(seed).permutation(files)[: total % files]] += 1
    return shares


def _random(image: np.ndarray, size: int, n: int, generator: np.random.Generator) -> np.ndarray:
    """n crops (n, 3, size, size) of an image (H, W, 3), all places equally likely."""
    tops, lefts = (
        generator.integers(0, length - size, n, endpoint=True) for length in image.shape[:2]
    )
    return np.stack(
        [
            image[top : top + size, left : left + size].transpose(2, 0, 1)
            for top, left in zip(tops, lefts)
        ]
    )


# A folder of images
def _load_folder(folder: Path, size: int, limit: int | None) -> ImageData:
    """Non-overlapping patches of every image; the last tenth of the files, in sorted order, is held
    out."""
    split = split_files(folder, "folder:")
    train_files, heldout_files = split.train, split.heldout

    def patches(names: list[str]) -> np.ndarray:
        return np.concatenate([grid(read_rgb(folder / name, size), size, size) for name in names])

    train, heldout = patches(train_files), patches(heldout_files)
    total = len(heldout)
    heldout = heldout[:limit]
    label = (
        f"folder {folder.resolve().name}: {len(train_files)} train / {len(heldout_files)} "
        f"held-out images, "
        f"{len(train)} train / {count(len(heldout), total)} held-out {size}x{size} patches"
        + (f"; {split.notes}" if split.notes else "")
    )
    counts = {
        "train": len(train_files),
        "heldout": len(heldout_files),
        "first_heldout": heldout_files[0],
    }
    return image_data("folder", label, train, heldout, folder=str(folder.resolve()), files=counts)
