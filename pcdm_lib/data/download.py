"""Published files: fetch them, check them, unpack CIFAR-10's archive. Files appear whole and
checked, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import shutil
import tarfile
import threading
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from pcdm_lib import outputs

CONNECT_SECONDS = 5.0  # name resolution, connection and response headers together
STALL_SECONDS = 10.0  # the longest wait for the next CHUNK bytes
CHUNK = 1 << 16


@dataclass(frozen=True)
class PublishedFile:
    """A file that is published under an address, and how to know it."""

    title: str  # the dataset
    name: str  # of the file
    url: str
    bytes: int
    md5: str = ""  # or the sha256: whichever is published
    sha256: str = ""
    instead: str = ""  # what to do without it

    def by_hand(self, folder: Path) -> str:
        """What to do where the download does not work."""
        return f"fetch {self.url} by hand and put it, as {self.name}, into {folder.resolve()}"

    def wrong(self, path: Path) -> str | None:
        """None for this very file, else what is wrong with the one at `path`."""
        size = path.stat().st_size
        if size != self.bytes:
            return f"has {size} bytes, expected {self.bytes}"
        name, expected = ("sha256", self.sha256) if self.sha256 else ("md5", self.md5)
        with path.open("rb") as file:
            found = hashlib.file_digest(
                file, lambda: hashlib.new(name, usedforsecurity=name == "sha256")
            ).hexdigest()
        return None if found == expected else f"has {name} {found}, expected {expected}"


CIFAR_FOLDER, CIFAR_ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST = "test_batch.bin"
CIFAR10 = PublishedFile(
    title="CIFAR-10",
    name=CIFAR_ARCHIVE,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    # published on https://www.cs.toronto.edu/~kriz/cifar.html
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    bytes=170_052_171,
    instead="; or use load('photos')",
)


def unpack(published: PublishedFile, archive: Path, final: Path) -> None:
    """Unpack the six batches of CIFAR-10; `final` appears complete or not at all."""
    wrong = published.wrong(archive)
    if wrong:
        raise ValueError(f"{archive} {wrong}: delete it, then {published.by_hand(archive.parent)}")
    with (
        contextlib.suppress(FileExistsError),  # another process unpacked the same archive first
        outputs.whole_folder(final) as partial,
        tarfile.open(archive, "r:gz") as tar,
    ):
        # by exact name: a member's own path is never written to
        for name in (*CIFAR_TRAIN, CIFAR_TEST):
            try:
                member = tar.extractfile(f"{CIFAR_FOLDER}/{name}")
            except KeyError:
                member = None
            if member is None:
                advice = f"delete it, then {published.by_hand(archive.parent)}"
                raise ValueError(f"{archive} holds no file {CIFAR_FOLDER}/{name}: {advice}")
            with member, outputs.whole_file(partial / name) as out:
                shutil.copyfileobj(member, out)


def fetch(published: PublishedFile, final: Path) -> None:
    """Fetch a published file with a progress bar; `final` appears complete and checked or not at
    all.

    Raises ConnectionError, within seconds, where it cannot be had.
    """
    stream = _stream(published.url)
    try:
        next(stream)  # connected: nothing touches the disk before
        with (
            outputs.whole_file(final) as out,
            tqdm(total=published.bytes, unit="B", unit_scale=True, desc=published.title) as bar,
        ):
            for chunk in stream:
                out.write(chunk)
                bar.update(len(chunk))
                if out.tell() > published.bytes:
                    break  # the check below says so
            out.flush()
            wrong = published.wrong(Path(out.name))
            if wrong:
                raise ConnectionError(f"what {published.url} sent {wrong}")
    except ConnectionError as error:
        advice = f"{published.by_hand(final.parent)}{published.instead}"
        raise ConnectionError(
            f"{published.title} could not be downloaded ({error}): {advice}"
        ) from error
    finally:
        stream.close()


def _stream(url: str) -> Generator[bytes, None, None]:
    """Yield b"" once connected, then the body in pieces of CHUNK bytes; ConnectionError on any
    failure or stall.

    A socket's timeout bounds neither name resolution nor a server that sends a byte now and then;
    waiting on a daemon thread bounds both.
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
