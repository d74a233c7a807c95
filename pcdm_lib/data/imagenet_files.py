"""The formats in which downsampled ImageNet is published: a tar archive of PNG images, or zip
archives of npz batches.

Both are read where they lie, or from the folder that they were unpacked to. No member of an archive
is written under its own path, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from pcdm_lib.advice import brief
from pcdm_lib.data.images import decode_rgb

BLOCK = 1024  # images that are decoded before they are written
TRAIN_BATCH, VALIDATION_BATCH = (
    re.compile(r"train_data_batch_(\d+)\.npz"),
    re.compile(r"val_data()\.npz"),
)


def listing(folder: Path, suffix: str) -> list[str]:
    """The names of a folder's files with that suffix, in sorted order, without what a Mac leaves
    beside them."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.name.endswith(suffix) and not entry.name.startswith(".")
        )


# PNG images


def png_blocks(paths: list[Path], size: int, training: bool) -> Iterator[np.ndarray]:
    """The images (n, 3, size, size) of one archive or folder, in the order of their names."""
    (path,) = paths
    return _stacked(_from_folder(path, size) if path.is_dir() else _from_tar(path, size))


def _from_folder(path: Path, size: int) -> Iterator[np.ndarray]:
    for name in listing(path, ".png"):
        with (path / name).open("rb") as file:
            yield _square(file, str(path / name), size)


def _from_tar(path: Path, size: int) -> Iterator[np.ndarray]:
    index = _tar_index(path)
    with path.open("rb") as archive:
        for name in sorted(index):
            offset, length = index[name]
            archive.seek(offset)
            yield _square(io.BytesIO(archive.read(length)), f"{name} in {path}", size)


def _tar_index(path: Path) -> dict[str, tuple[int, int]]:
    """Where each PNG lies in an uncompressed archive, and how many bytes it has."""
    index = {}
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                # a gigabyte of them otherwise; the stubs leave this attribute out
                tar.members.clear()  # type: ignore[attr-defined]
                name = PurePosixPath(member.name)
                if (
                    member.isreg()
                    and name.parent.name == path.stem
                    and name.suffix == ".png"
                    and not name.name.startswith(".")
                ):
                    index[name.name] = member.offset_data, member.size
        with path.open("rb") as file:  # an archive cut between two members looks whole to tarfile
            file.seek(max(0, path.stat().st_size - 2 * tarfile.BLOCKSIZE))
            if any(file.read()):
                raise tarfile.ReadError("no end-of-archive mark")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is cut short or no tar archive ({brief(error)}): fetch it again"
        ) from error
    return index


def _square(file: BinaryIO, name: str, size: int) -> np.ndarray:
    pixels = decode_rgb(file, name)
    if pixels.shape != (size, size, 3):
        raise ValueError(
            f"{name} is {pixels.shape[1]}x{pixels.shape[0]} pixels, expected {size}x{size}: take "
            f"the published files"
        )
    return pixels.transpose(2, 0, 1)


def _stacked(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Images (3, S, S) in blocks of BLOCK; the last may be smaller."""
    block = []
    for image in images:
        block.append(image)
        if len(block) == BLOCK:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)


# npz batches


def npz_blocks(paths: list[Path], size: int, training: bool) -> Iterator[np.ndarray]:
    """The images (n, 3, size, size) of the batches in archives or folders, in the order of the
    batches' numbers."""
    pattern = TRAIN_BATCH if training else VALIDATION_BATCH
    batches = {}
    for path in paths:
        for name in listing(path, ".npz") if path.is_dir() else _zip_names(path):
            if match := pattern.fullmatch(PurePosixPath(name).name):
                batches[int(match[1] or 1)] = path, name
    missing = sorted(set(range(1, max(batches, default=0))) - set(batches))
    if missing:
        where = " and ".join(map(str, paths))
        raise ValueError(
            f"{where} lacks batch {missing[0]} of {max(batches)}: batches may be missing at the "
            f"end only, take the published files"
        )
    for number in sorted(batches):
        images = _read_batch(*batches[number], size)
        for begin in range(0, len(images), BLOCK):
            yield images[begin : begin + BLOCK]


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is cut short or no zip archive ({brief(error)}): fetch it again"
        ) from error


def _read_batch(path: Path, name: str, size: int) -> np.ndarray:
    """The images (n, 3, size, size) of one batch: `data` (n, 3 * size^2), channel after channel,
    and `labels` (n,)."""
    what, images = f"{brief(name)} in {path}", None
    try:
        with _opened(path, name) as file, np.errstate(all="ignore"):
            loaded = np.load(file, allow_pickle=False)
            keys = sorted(loaded.files) if isinstance(loaded, np.lib.npyio.NpzFile) else []
            if {"data", "labels"} <= set(keys):
                images, labels = (np.asarray(loaded[key]) for key in ("data", "labels"))
    except Exception as error:  # NumPy and zipfile know as many as there are ways to break a file
        raise ValueError(
            f"{what} cannot be read as npz ({brief(error)}): fetch it again"
        ) from error
    advice = "take the published files"
    if images is None:
        named = brief(", ".join(keys))
        raise ValueError(
            f"{what} has the keys {named or 'of no npz file'}, expected data and labels: {advice}"
        )
    if (
        images.dtype != np.uint8
        or images.ndim != 2
        or images.shape[1] != 3 * size * size
        or not len(images)
    ):
        raise ValueError(
            f"{what} has data of {images.dtype} {images.shape}, expected uint8 (N, "
            f"{3 * size * size}), N at least 1: {advice}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{what} has labels of {labels.dtype} {labels.shape}, expected integers "
            f"{images.shape[:1]}: {advice}"
        )
    return images.reshape(-1, 3, size, size)


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    """A file of a folder or a zip archive, in which one can seek."""
    if path.is_dir():
        with (path / name).open("rb") as file:
            yield file
    else:
        # npz is a zip archive itself, read from its end: of a member, which must be read from its
        # start, it takes a copy (without a name)
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(name) as member,
            tempfile.TemporaryFile(dir=path.parent) as copy,
        ):
            shutil.copyfileobj(member, copy, 1 << 20)
            copy.seek(0)
            yield copy
