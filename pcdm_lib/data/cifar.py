"""CIFAR-10 in its official binary format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdm_lib.data.download import (
    CIFAR10,
    CIFAR_ARCHIVE,
    CIFAR_FOLDER,
    CIFAR_TEST,
    CIFAR_TRAIN,
    fetch,
    unpack,
)
from pcdm_lib.data.images import ImageData, count, image_data

# bytes a record (label, then pixels); records a file
CIFAR_RECORD, CIFAR_BATCH = 1 + 3 * 32 * 32, 10_000


# CIFAR-10
def _load_cifar10(folder: Path, size: int, limit: int | None, download: bool) -> ImageData:
    if size != 32:
        raise ValueError(
            f"CIFAR-10 images are 32x32, got size={size}: use size=32, or load('photos', "
            f"size={size})"
        )
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
        # A cut training set holds the beginning of each of five files, so it is not "the first" of
        # the 50000.
        some = f"{full}" if len(train) == full else f"{len(train)} of {full}"
        label += f" ({some} train, {count(len(heldout), CIFAR_BATCH)} test images)"
    return image_data(
        "cifar10",
        label,
        train,
        heldout,
        folder=str(batches.resolve()),
        files=[*CIFAR_TRAIN, CIFAR_TEST],
    )


def _read_batch(path: Path) -> np.ndarray:
    """The images (N, 3, 32, 32) of one binary file; a file cut short between two records is
    fine."""
    advice = f"delete {path.parent} and unpack {CIFAR_ARCHIVE} again"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, expected {', '.join((*CIFAR_TRAIN, CIFAR_TEST))}: {advice}"
        )
    data = np.fromfile(path, np.uint8)
    if not 0 < data.size <= CIFAR_BATCH * CIFAR_RECORD or data.size % CIFAR_RECORD:
        expected = f"1 to {CIFAR_BATCH} records of {CIFAR_RECORD} bytes"
        raise ValueError(
            f"{path} has {data.size} bytes, expected {expected} (label and 3x32x32 pixels): "
            f"{advice}"
        )
    records = data.reshape(-1, CIFAR_RECORD)
    if records[:, 0].max() > 9:
        first = int(np.argmax(records[:, 0] > 9))
        raise ValueError(
            f"{path}: record {first} has label {records[first, 0]}, expected 0 to 9 "
            f"(one label byte, as in CIFAR-10's binary format): {advice}"
        )
    return records[:, 1:].reshape(-1, 3, 32, 32)
