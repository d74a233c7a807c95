"""ImageNet at 32, 64 and 128 pixels.

At 32 and 64 pixels two sets bear the same name, and what a model scores on one says little about
the other: the *old* one (van den Oord et al. 2016, Pixel Recurrent Neural Networks), on which most
likelihoods in the literature were measured, and the *new* one (Chrabaszcz et al. 2017), made
smaller by another filter. So a set's version stands in its name and label.

None of them can be fetched without a login. image-net.org publishes no checksums, so what is
checked is structure and counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pcdm_lib import records
from pcdm_lib.data.found import counted, find_images
from pcdm_lib.data.image_cache import cached, file_facts, folder_facts
from pcdm_lib.data.imagenet_files import BLOCK, listing, npz_blocks, png_blocks
from pcdm_lib.data.images import ImageData, count, decode_rgb, image_data

SIDE = 128  # of the images made from a folder


@dataclass(frozen=True)
class Split:
    """One side of a published set: its archives, each of which may lie unpacked in a folder of its
    name, and its number of images."""

    archives: tuple[str, ...]
    images: int


@dataclass(frozen=True)
class Edition:
    """One published set of downsampled images."""

    label: str
    size: int
    train: Split
    heldout: Split  # the published validation images
    suffix: str  # of the files in its archives
    blocks: Callable[[list[Path], int, bool], Iterator[np.ndarray]]  # reads them
    origin: str  # where to get it


def _old(size: int) -> Edition:
    return Edition(
        label=f"ImageNet {size}x{size} (old: van den Oord et al. 2016)",
        size=size,
        train=Split((f"train_{size}x{size}.tar",), 1_281_149),
        heldout=Split((f"valid_{size}x{size}.tar",), 49_999),
        suffix=".png",
        blocks=png_blocks,
        origin="published at http://image-net.org/small/download.php and no longer there: ask "
        "image-net.org, or who has a copy",
    )


def _new(size: int) -> Edition:
    parts = ("train",) if size == 32 else ("train_part1", "train_part2")
    return Edition(
        label=f"ImageNet {size}x{size} (new: Chrabaszcz et al. 2017, box)",
        size=size,
        train=Split(tuple(f"Imagenet{size}_{part}_npz.zip" for part in parts), 1_281_167),
        heldout=Split((f"Imagenet{size}_val_npz.zip",), 50_000),
        suffix=".npz",
        blocks=npz_blocks,
        origin="offered after a login at https://image-net.org/download-images, in npz format",
    )


SETS = {
    f"imagenet{size}-{version}": make(size)
    for size in (32, 64)
    for version, make in (("old", _old), ("new", _new))
}
AMBIGUOUS = ("imagenet32", "imagenet64")
NAMES = (*SETS, "imagenet128:PATH")


def load(name: str, root: Path, size: int | None, limit: int | None) -> ImageData:
    """One of SETS, out of the folder `root`/`name` or `root` itself."""
    if name in AMBIGUOUS:
        raise ValueError(
            f"{name} is what two sets are called, made smaller in different ways, so that their "
            f"bits per dimension differ: say "
            f"{name}-old (van den Oord et al. 2016) or {name}-new (Chrabaszcz et al. 2017, box)"
        )
    published = SETS[name]
    if size not in (None, published.size):
        raise ValueError(
            f"the images of {name} are {published.size}x{published.size}, got size={size}: leave "
            f"size out, or take another set"
        )
    paths = {
        side: _find(name, root, published, split)
        for side, split in (("train", published.train), ("heldout", published.heldout))
    }
    train, train_sha256 = _images(name, published, published.train, paths["train"])
    heldout, heldout_sha256 = _images(name, published, published.heldout, paths["heldout"])
    kept = heldout[:limit]
    label = published.label
    if (len(train), len(kept)) != (published.train.images, published.heldout.images):
        some = count(len(train), len(train), published.train.images)
        label += (
            f", {some} train, {count(len(kept), len(heldout), published.heldout.images)} "
            f"validation images"
        )
    return image_data(
        name,
        label,
        train,
        kept,
        train_sha256=train_sha256,
        heldout_sha256=heldout_sha256 if len(kept) == len(heldout) else None,
        folder=str(paths["train"][0].parent.resolve()),
        files=[path.name for path in (*paths["train"], *paths["heldout"])],
    )


def _find(name: str, root: Path, published: Edition, split: Split) -> list[Path]:
    """The archives of a split, or the folders that they were unpacked to."""
    found = []
    for archive in split.archives:
        stem = PurePosixPath(archive).stem
        present = [
            path
            for folder in (root / name, root)
            for path in (folder / archive, folder / stem)
            if path.exists()
        ]
        if not present:
            wanted = ", ".join((*published.train.archives, *published.heldout.archives))
            raise FileNotFoundError(
                f"no {archive} (nor {stem}/, unpacked from it) in {root.resolve()} or its folder "
                f"{name}/: this set cannot be downloaded "
                f"without a login; get {wanted} ({published.origin}) and put them there, as they "
                f"are or unpacked"
            )
        found.append(present[0])
    return found


def _images(
    name: str, published: Edition, split: Split, paths: list[Path]
) -> tuple[np.ndarray, str]:
    """All images of a split and their checksum, by way of a cache beside its first archive."""
    training = split is published.train
    where = " and ".join(map(str, paths))

    def blocks() -> Iterator[np.ndarray]:
        made = 0
        for block in published.blocks(paths, published.size, training):
            made += len(block)
            if made > split.images:
                raise ValueError(
                    f"{where} holds more than the {split.images} images of {published.label}: "
                    f"take the published files"
                )
            yield block
        if not made:
            raise ValueError(
                f"{where} holds no {published.suffix} files of {published.label}: take the "
                f"published files"
            )

    # what lies unpacked is listed, not read, to see whether the cache was made of it
    source = [
        folder_facts(path, listing(path, published.suffix)) if path.is_dir() else file_facts(path)
        for path in paths
    ]
    title = f"{name}-{'train' if training else 'validation'}"
    return cached(
        paths[0].parent / f"{title}.cache",
        {"files": source},
        blocks,
        shape=(3, published.size, published.size),
        total=split.images,
        title=title,
    )


# From a folder


def load_folder(folder: Path, size: int | None, limit: int | None) -> ImageData:
    """ImageNet at 128 pixels out of `folder`/train and `folder`/val, each with or without folders
    for the classes. An image of val/ that train/ holds too, pixel by pixel once reduced, is left
    out of the held-out ones."""
    if size not in (None, SIDE):
        raise ValueError(
            f"imagenet128:PATH makes images of {SIDE}x{SIDE}, got size={size}: leave size out, or "
            f"use crops:PATH"
        )
    made, left_out, notes = [], 0, []
    for side in ("train", "val"):
        if not (folder / side).is_dir():
            raise FileNotFoundError(
                f"{folder / side} is not a folder: give imagenet128:PATH a folder that holds "
                f"train/ and val/, each of images"
            )
        found = find_images(folder / side)
        files = found.files
        notes += [f"{side}/ {found.notes()}"] if found.left_out else []
        made.append(_reduced(folder / side, files))
        left_out += len(files) - len(made[-1][0])
    (train, train_sha256), (heldout, heldout_sha256) = made
    repeats = _trained_on(folder, made)
    if repeats:
        if len(repeats) == len(heldout):
            raise ValueError(
                f"all images of {folder / 'val'} are in {folder / 'train'} too: nothing is left to "
                f"hold out, give other images"
            )
        heldout, heldout_sha256 = np.delete(heldout, repeats, axis=0), ""
        notes.append(f"val/ left out: {counted(len(repeats), 'images')} of train/")
    kept = heldout[:limit]
    label = (
        f"ImageNet {SIDE}x{SIDE} (folder {folder.resolve().name}: shorter side to {SIDE} by area, "
        f"Pillow's BOX, then the middle), "
        f"{len(train)} train / {count(len(kept), len(heldout))} validation images"
    )
    if left_out:
        label += f", {counted(left_out, 'smaller ones')} left out"
    label = "; ".join((label, *notes))
    return image_data(
        "imagenet128",
        label,
        train,
        kept,
        train_sha256=train_sha256,
        heldout_sha256=heldout_sha256 if len(kept) == len(heldout) else None,
        folder=str(folder.resolve()),
        left_out=left_out,
        repeats=len(repeats),
    )


def _trained_on(folder: Path, made: list[tuple[np.ndarray, str]]) -> list[int]:
    """The places of the validation images that are training images too.

    Every image has to be read to tell, so the answer is kept beside the caches, for these very
    images.
    """
    (train, train_sha256), (heldout, heldout_sha256) = made
    path = folder / f"imagenet{SIDE}-repeats.json"
    of = {"train_sha256": train_sha256, "val_sha256": heldout_sha256}
    ours = not path.exists()
    try:
        known = records.read_json(path)
        ours = isinstance(known, dict) and "repeats" in known
        if ours and {key: known.get(key) for key in of} == of:
            repeats = sorted({int(place) for place in known["repeats"]})
            if not repeats or (0 <= repeats[0] and repeats[-1] < len(heldout)):
                return repeats
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not there, or not what was written: found anew
    digests: dict[bytes, list[int]] = {}
    for place, image in enumerate(heldout):
        digests.setdefault(_digest(image), []).append(place)
    repeats = sorted({place for image in train for place in digests.get(_digest(image), ())})
    # a folder for reading only, or a file that is somebody else's: found anew the next time
    with contextlib.suppress(OSError, ValueError):
        if ours:
            records.write_json(path, of | {"repeats": repeats})
    return repeats


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _reduced(folder: Path, files: list[str]) -> tuple[np.ndarray, str]:
    """The images of a folder at SIDE x SIDE and their checksum, by way of a cache beside the
    folder."""

    def read(name: str) -> np.ndarray | None:
        with (folder / name).open("rb") as file:
            # lenient: ImageNet has some CMYK files, which everyone converts
            return reduce_to(decode_rgb(file, str(folder / name), lenient=True), SIDE)

    def blocks() -> Iterator[np.ndarray]:
        made = 0
        # Pillow decodes and resizes without holding the interpreter
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for begin in range(0, len(files), BLOCK):
                images = [
                    image
                    for image in pool.map(read, files[begin : begin + BLOCK])
                    if image is not None
                ]
                made += len(images)
                if images:
                    yield np.stack(images)
        if not made:
            raise ValueError(
                f"{folder} holds {len(files)} images, none of at least {SIDE}x{SIDE} pixels: give "
                f"a folder of larger ones"
            )

    title = f"imagenet{SIDE}-{folder.name}"
    return cached(
        folder.parent / f"{title}.cache",
        {"files": folder_facts(folder, files)},
        blocks,
        shape=(3, SIDE, SIDE),
        total=len(files),
        title=title,
    )


def reduce_to(pixels: np.ndarray, side: int) -> np.ndarray | None:
    """(H, W, 3) -> (3, side, side): the shorter side reduced to `side` by area, then the middle;
    None for a smaller image.

    The filter is Pillow's BOX, means over the area that each pixel covers, in fixed point: the same
    on every machine.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short < side:
        return None
    # rounded, in integers
    new_width, new_height = (
        (2 * length * side + short) // (2 * short) for length in (width, height)
    )
    small = np.asarray(
        Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BOX)
    )
    top, left = (new_height - side) // 2, (new_width - side) // 2
    return small[top : top + side, left : left + side].transpose(2, 0, 1)
