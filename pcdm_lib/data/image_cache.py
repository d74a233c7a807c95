"""Images that are decoded once and then mapped into memory. A cache is whole and made from the very
files that lie there, or it is made anew."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from pcdm_lib import outputs, records

FORMAT = 1
IMAGES, FACTS = "images.npy", "facts.json"


def cached(
    path: Path,
    source: dict[str, Any],
    make: Callable[[], Iterable[np.ndarray]],
    *,
    shape: tuple[int, int, int],
    total: int,
    title: str,
) -> tuple[np.ndarray, str]:
    """Images (N, *shape) as a map of the folder `path`, and the sha256 of their bytes; the folder
    is made where it does not hold them.

    source: JSON-able facts that differ whenever the images might: the names, sizes and times of
        change of their files.
    make: yields the images in order, in uint8 blocks (n, *shape). What it raises leaves `path` as
        it was.
    total, title: what the progress bar says: about how many images there will be, and of what.

    Raises OSError where the folder cannot be written.
    """
    found = _read(path, source, shape)
    if found is None:
        try:
            _write(path, source, make, shape, total, title)
        except OSError:
            found = _read(path, source, shape)
            if found is None:  # where it is there, another process made the same one first
                raise
        else:
            found = _read(path, source, shape)
            if found is None:
                raise OSError(
                    f"{path} does not read back as it was written: its disk, or a program that "
                    f"changes files there, is at fault"
                )
    return found


def file_facts(path: Path) -> dict[str, Any]:
    """The name, size and time of change of a file: what tells that it was replaced, without reading
    it."""
    stat = path.stat()
    return {"name": path.name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def folder_facts(folder: Path, files: list[str]) -> dict[str, Any]:
    """The same for many files under a folder, in short: their number, and a checksum of the facts
    of each."""
    digest = hashlib.sha256()
    for name in files:
        stat = os.stat(folder / name)
        digest.update(
            f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape")
        )
    return {"name": folder.name, "files": len(files), "listing_sha256": digest.hexdigest()}


def _read(
    path: Path, source: dict[str, Any], shape: tuple[int, int, int]
) -> tuple[np.ndarray, str] | None:
    """The images and their checksum, or None where there are none, or others, or not all."""
    try:
        facts = records.read_json(path / FACTS)
        with np.errstate(all="ignore"):
            images = _map(path / IMAGES)
        whole = (path / IMAGES).stat().st_size == images.offset + images.nbytes
    except Exception:  # NumPy knows about as many as there are ways to break a header
        return None
    expected = {"format": FORMAT, "source": source, "shape": list(images.shape)}
    fits = (
        isinstance(facts, dict)
        and {key: facts.get(key) for key in expected} == expected
        and isinstance(facts.get("sha256"), str)
    )
    return (
        (images, facts["sha256"])
        if fits and whole and images.dtype == np.uint8 and images.shape[1:] == shape
        else None
    )


def _map(path: Path) -> np.memmap:
    """A .npy file mapped copy-on-write: who writes into the images changes neither the file nor
    another process's images."""
    try:
        return np.load(path, mmap_mode="c")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        # Linux may refuse a map for writing that is larger than memory and swap together; one for
        # reading costs it nothing.
        return np.load(path, mmap_mode="r")


def _write(
    path: Path,
    source: dict[str, Any],
    make: Callable[[], Iterable[np.ndarray]],
    shape: tuple[int, int, int],
    total: int,
    title: str,
) -> None:
    if not os.access(path.parent, os.W_OK):
        advice = "make it writable, or use a folder of your own with links to the data"
        raise PermissionError(
            f"{path.parent} cannot be written, and decoded images are kept there, in {path.name}: "
            f"{advice}"
        )
    digest, count = hashlib.sha256(), 0
    with outputs.whole_folder(path, (IMAGES, FACTS)) as work:
        with (
            outputs.whole_file(work / IMAGES) as file,
            tqdm(total=total, unit="image", desc=title) as bar,
        ):
            _header(file, (0, *shape))
            for block in make():
                block = np.ascontiguousarray(block)
                assert block.dtype == np.uint8 and block.shape[1:] == shape, (
                    block.dtype,
                    block.shape,
                )
                file.write(block.data)
                digest.update(block.data)
                count += len(block)
                bar.update(len(block))
            file.seek(0)
            _header(file, (count, *shape))
        facts = {
            "format": FORMAT,
            "source": source,
            "shape": [count, *shape],
            "sha256": digest.hexdigest(),
        }
        records.write_json(work / FACTS, facts)


def _header(file: Any, shape: tuple[int, ...]) -> None:
    """NumPy leaves room for a longer first side, so that the header of the whole fits over that of
    nothing."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
