"""Image datasets as uint8 tensors, and the order in which training visits them.

`load` is the one way in: photographs that come with scikit-image (nothing to fetch), CIFAR-10 in its
official binary format, or a folder of images. Every dataset carries the label that figures and result
files print, so that a number measured on a part of a dataset never reads as one measured on all of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import queue
import shutil
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

NAMES = ("auto", "photos", "cifar10", "folder:PATH")

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # published on https://www.cs.toronto.edu/~kriz/cifar.html
CIFAR_BYTES = 170_052_171
CIFAR_FOLDER, CIFAR_ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST = "test_batch.bin"
CIFAR_RECORD, CIFAR_BATCH = 1 + 3 * 32 * 32, 10_000  # bytes a record (label, then pixels); records a file

CONNECT_SECONDS = 5.0  # name resolution, connection and response headers together
STALL_SECONDS = 10.0  # the longest wait for the next CHUNK bytes
CHUNK = 1 << 16

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
                raise FileNotFoundError(f"{missing}: {_by_hand(folder)}")
            _download(CIFAR_URL, archive)
        _unpack(archive, batches)
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


def _by_hand(folder: Path) -> str:
    return f"fetch {CIFAR_URL} by hand and put it, as {CIFAR_ARCHIVE}, into {folder.resolve()}"


def _check_archive(path: Path) -> str | None:
    """None for the official archive, else what is wrong with the file."""
    size = path.stat().st_size
    if size == CIFAR_BYTES:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 == CIFAR_MD5:
            return None
        return f"has md5 {md5}, expected {CIFAR_MD5}"
    return f"has {size} bytes, expected {CIFAR_BYTES}"


def _unpack(archive: Path, final: Path) -> None:
    """Unpack the six batches; `final` appears complete or not at all."""
    wrong = _check_archive(archive)
    if wrong:
        raise ValueError(f"{archive} {wrong}: delete it, then {_by_hand(archive.parent)}")
    partial = Path(tempfile.mkdtemp(dir=final.parent, prefix=".cifar-10-"))
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in (*CIFAR_TRAIN, CIFAR_TEST):  # by exact name: a member's own path is never written to
                try:
                    member = tar.extractfile(f"{CIFAR_FOLDER}/{name}")
                except KeyError:
                    member = None
                if member is None:
                    advice = f"delete it, then {_by_hand(archive.parent)}"
                    raise ValueError(f"{archive} holds no file {CIFAR_FOLDER}/{name}: {advice}")
                with member, (partial / name).open("wb") as out:
                    shutil.copyfileobj(member, out)
        partial.chmod(0o755)
        try:
            partial.rename(final)
        except OSError:
            if not final.exists():  # where it does, another process unpacked the same archive first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(url: str, final: Path) -> None:
    """Fetch the official archive; `final` appears complete and checked or not at all."""
    stream = _stream(url)
    partial = None
    try:
        next(stream)  # connected: nothing touches the disk before
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=final.parent, prefix=".cifar-10-")
        with os.fdopen(handle, "wb") as out, tqdm(total=CIFAR_BYTES, unit="B", unit_scale=True, desc="CIFAR-10") as bar:
            for chunk in stream:
                out.write(chunk)
                bar.update(len(chunk))
                if out.tell() > CIFAR_BYTES:
                    break  # the check below says so
        wrong = _check_archive(Path(partial))
        if wrong:
            raise ConnectionError(f"what {url} sent {wrong}")
        os.chmod(partial, 0o644)
        os.replace(partial, final)
        partial = None
    except ConnectionError as error:
        advice = f"{_by_hand(final.parent)}; or use load('photos')"
        raise ConnectionError(f"CIFAR-10 could not be downloaded ({error}): {advice}") from error
    finally:
        stream.close()
        if partial:
            os.unlink(partial)


def _stream(url: str) -> Iterator[bytes]:
    """Yield b"" once connected, then the body in pieces of CHUNK bytes; ConnectionError on any failure or stall.

    A socket's timeout bounds neither name resolution nor a server that sends a byte now and then; waiting
    on a daemon thread bounds both.
    """
    pieces: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=16)
    stop = threading.Event()

    def put(piece: bytes | Exception | None) -> None:
        while not stop.is_set():
            try:
                return pieces.put(piece, timeout=0.2)
            except queue.Full:
                continue

    def read() -> None:
        try:
            with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as response:
                put(b"")
                while not stop.is_set() and (piece := response.read(CHUNK)):
                    put(piece)
            put(None)
        except Exception as error:  # handed over: the consumer's thread raises it
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            put(error)

    threading.Thread(target=read, daemon=True).start()
    seconds = CONNECT_SECONDS
    try:
        while True:
            try:
                piece = pieces.get(timeout=seconds)
            except queue.Empty:
                raise ConnectionError(f"{url} sent nothing useful for {seconds:g} s") from None
            if isinstance(piece, Exception):
                raise ConnectionError(f"{url}: {piece}") from piece
            if piece is None:
                return
            yield piece
            seconds = STALL_SECONDS
    finally:
        stop.set()


# A folder of images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


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
        return "transparency"
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:  # a JPEG's further frames are previews
        return f"{image.n_frames} frames"
    return None if image.mode in ("1", "L", "P", "RGB") else f"mode {image.mode}"


# The order of training


def random_flip(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image of (B, C, H, W) left to right with probability one half; a new tensor."""
    flip = torch.rand(len(batch), generator=generator, device=generator.device) < 0.5
    return torch.where(flip.to(batch.device)[:, None, None, None], batch.flip(-1), batch)


class BatchSampler:
    """Endless batches of indices into n images: every epoch visits each image once, in a new order.

    The order of an epoch depends on (seed, epoch) alone, so `state_dict` is five integers, and a run
    resumed from it sees the batches that the unbroken run would have seen. A batch may cross into the
    next epoch; with n < batch_size it crosses several.
    """

    def __init__(self, n: int, batch_size: int, seed: int = 0) -> None:
        for name, value, least in (("n", n, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                why = ": there are no images to sample, check what was loaded" if name == "n" else ""
                raise ValueError(f"BatchSampler got {name}={value}, expected at least {least}{why}")
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._start(epoch=0, position=0)

    def _start(self, epoch: int, position: int) -> None:
        self.epoch, self.position = epoch, position
        self._order = torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(self.n))

    def next(self) -> torch.Tensor:
        """The next batch: int64 indices (batch_size,)."""
        parts, missing = [], self.batch_size
        while missing:
            if self.position == self.n:
                self._start(self.epoch + 1, 0)
            part = self._order[self.position : self.position + missing]
            parts.append(part)
            self.position += len(part)
            missing -= len(part)
        return torch.cat(parts)

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield self.next()

    def state_dict(self) -> dict[str, int]:
        return {key: getattr(self, key) for key in ("n", "batch_size", "seed", "epoch", "position")}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken; ValueError where it was taken from another kind of run."""
        for key in ("n", "batch_size", "seed"):
            if state[key] != getattr(self, key):
                found = f"the state has {key}={state[key]}, this sampler {key}={getattr(self, key)}"
                raise ValueError(f"{found}: resume with the data and settings of the saved run")
        if state["epoch"] < 0 or not 0 <= state["position"] <= self.n:
            place = f"epoch {state['epoch']}, position {state['position']}"
            raise ValueError(f"{place} lies outside a run over {self.n} images: the saved state is damaged")
        self._start(state["epoch"], state["position"])
