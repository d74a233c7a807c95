"""Datasets: what is loaded, what it is called, and that broken or missing data is said to be so."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import os
import socket
import struct
import tarfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pcdm_lib import data
from pcdm_lib.data import cifar as cifar_module
from pcdm_lib.data import download as download_module
from pcdm_lib.data import load_data, photos
from pcdm_lib.data.download import CIFAR10, CIFAR_ARCHIVE, CIFAR_FOLDER, CIFAR_TEST, CIFAR_TRAIN
from pcdm_lib.data.images import box_reduce, spread
from pcdm_lib.data.paths import data_folder
from pcdm_lib.data.photos import HELDOUT_PHOTOS, TRAIN_PHOTOS, _read_photo
from pcdm_lib.training.batches import BatchSampler, random_flip

BATCHES = [*CIFAR_TRAIN, CIFAR_TEST]


def records(n: int, seed: int = 0) -> np.ndarray:
    """Synthetic CIFAR-10 records (n, 3073)."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.integers(0, 10, (n, 1)), rng.integers(0, 256, (n, 3072))], 1).astype(
        np.uint8
    )


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A data folder with 2, 3, 4, 5, 6 train and 7 test records."""
    folder = tmp_path / CIFAR_FOLDER
    folder.mkdir()
    for i, name in enumerate(BATCHES):
        (folder / name).write_bytes(records(i + 2, i).tobytes())
    return tmp_path


def archive_bytes(leave_out: str | None = None) -> bytes:
    """A small archive laid out as the official one, with a member that tries to escape."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for i, name in enumerate(["../../escaped", *BATCHES]):
            if name != leave_out:
                content = records(i + 1, i).tobytes()
                member = tarfile.TarInfo(f"{CIFAR_FOLDER}/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def trust(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    known = dataclasses.replace(CIFAR10, bytes=len(content), md5=hashlib.md5(content).hexdigest())
    monkeypatch.setattr(cifar_module, "CIFAR10", known)


@contextlib.contextmanager
def server(body: bytes, *, status: int = 200):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}/cifar.tar.gz"
        finally:
            httpd.shutdown()


@contextlib.contextmanager
def stalling_server(first: bytes, drip: bytes = b""):
    """Sends `first`, then `drip` every 50 ms, and never closes."""
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(first)
                while not done.wait(0.05):
                    connection.sendall(drip)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/cifar.tar.gz"
        finally:
            done.set()
            thread.join(5)


# Arguments and the data folder


@pytest.mark.parametrize("name", ["imagenet", "", "folder:", "Photos"])
def test_unknown_name_lists_the_known(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of auto, photos, cifar10, .*folder:PATH"):
        load_data(name, root=tmp_path)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "32"])
@pytest.mark.parametrize("key", ["size", "heldout_limit"])
def test_bad_numbers_are_refused(key: str, bad: object) -> None:
    with pytest.raises(ValueError, match=f"{key}=.*positive integer"):
        load_data("photos", **{key: bad})


def test_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PCDM_DATA", raising=False)
    assert data_folder() == Path("data")
    monkeypatch.setenv("PCDM_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    assert data_folder("elsewhere") == Path("elsewhere")


# Photographs


def test_photos_are_the_same_everywhere() -> None:
    photos = load_data("photos")
    assert (photos.train.dtype, photos.heldout.dtype) == (torch.uint8, torch.uint8)
    assert photos.train.shape == (4218, 3, 32, 32) and photos.heldout.shape == (283, 3, 32, 32)
    assert photos.name == "photos"
    assert (
        photos.label
        == "photos32: 6 of 9 scikit-image colour photographs, 4218 train / 283 held-out 32x32 "
        "patches"
    )
    for part in ("train", "heldout"):
        assert (
            photos.source[f"{part}_sha256"]
            == hashlib.sha256(getattr(photos, part).numpy().tobytes()).hexdigest()
        )
    # Frozen: these change only if every number measured on the photographs changes with them.
    assert (
        photos.source["train_sha256"]
        == "b1088a88ac92063b6250e54049ece365cbbdfcb6b203aece8887ee5dd87d6f5f"
    )
    assert (
        photos.source["heldout_sha256"]
        == "2c212b61ae40cc1ef0206bcee709ba68beedb8e08cf8848691ed6abb82e3faae"
    )
    assert json.loads(json.dumps(photos.source)) == photos.source
    with pytest.raises(dataclasses.FrozenInstanceError):
        photos.label = "CIFAR-10"


def test_photos_are_split_by_scene() -> None:
    assert not set(TRAIN_PHOTOS) & set(HELDOUT_PHOTOS)
    assert len(set(TRAIN_PHOTOS.values()) | set(HELDOUT_PHOTOS.values())) == 6
    stereo = {"motorcycle_left.png", "motorcycle_right.png"}
    assert stereo <= set(TRAIN_PHOTOS) or stereo <= set(HELDOUT_PHOTOS)
    photos = load_data("photos")
    assert not {p.tobytes() for p in photos.train.numpy()} & {
        p.tobytes() for p in photos.heldout.numpy()
    }


def test_photos_limit_keeps_a_beginning_that_shows_everything() -> None:
    whole, some = load_data("photos"), load_data("photos", heldout_limit=40)
    assert some.label.endswith("4218 train / first 40 of 283 held-out 32x32 patches")
    assert torch.equal(some.heldout, whole.heldout[:40]) and torch.equal(some.train, whole.train)
    assert load_data("photos", heldout_limit=1000).label == whole.label
    # Two photographs at two reductions: groups of 60, 28, 135 and 60 patches in the order before
    # spreading.
    group = np.searchsorted([60, 88, 223], spread(283)[:40], side="right")
    assert set(group) == {0, 1, 2, 3}


@pytest.mark.parametrize("size", [1, 8, 16, 64])
def test_photos_in_other_sizes(size: int) -> None:
    photos = load_data("photos", size=size)
    assert photos.label.startswith(f"photos{size}:")
    assert photos.train.shape[1:] == photos.heldout.shape[1:] == (3, size, size)
    assert len(photos.train) > 500 and len(photos.heldout) > 30


def test_photos_too_large_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at most 128 pixels, got size=129"):
        load_data("photos", size=129)
    with pytest.raises(
        FileNotFoundError, match="nowhere.png: expected sha256 ab, found no such file: install"
    ):
        _read_photo("nowhere.png", "ab")
    with pytest.raises(FileNotFoundError, match="astronaut.png: expected sha256 ab, found 88431c"):
        _read_photo("astronaut.png", "ab")
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r'pip install "pcdm-lib\[photos\]"'):
        load_data("photos")


def test_box_reduce_by_hand() -> None:
    image = np.zeros((3, 5, 3), np.uint8)  # the last row and column do not fill a block
    image[:2, :2, 0] = [[1, 2], [3, 4]]  # mean 2.5, rounded up
    image[:2, 2:4, 1] = 255
    assert box_reduce(image, 2).tolist() == [[[3, 0, 0], [0, 255, 0]]]


@given(st.integers(1, 400))
def test_spread_is_an_order(n: int) -> None:
    assert sorted(spread(n)) == list(range(n))


# CIFAR-10


def test_cifar_pixels_label_and_limit(cifar: Path) -> None:
    images = load_data("cifar10", root=cifar)
    assert images.label == "CIFAR-10 (20 of 50000 train, first 7 of 10000 test images)"
    assert (
        images.name == "cifar10"
        and images.train.shape == (20, 3, 32, 32)
        and images.train.dtype == torch.uint8
    )
    expected = np.concatenate([records(i + 2, i)[:, 1:] for i in range(5)])
    assert np.array_equal(images.train.numpy().reshape(20, 3072), expected)
    assert images.source["train_count"] == 20 and images.source["files"] == BATCHES
    assert images.source["train_sha256"] == hashlib.sha256(expected.tobytes()).hexdigest()
    limited = load_data("cifar10", root=cifar, heldout_limit=3)
    assert limited.label == "CIFAR-10 (20 of 50000 train, first 3 of 10000 test images)"
    assert torch.equal(limited.heldout, images.heldout[:3])


def test_cifar_full_set_needs_no_qualification(
    cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar_module, "CIFAR_BATCH", 2)
    for i, name in enumerate(BATCHES):
        (cifar / CIFAR_FOLDER / name).write_bytes(records(2, i).tobytes())
    assert load_data("cifar10", root=cifar).label == "CIFAR-10"
    assert (
        load_data("cifar10", root=cifar, heldout_limit=1).label
        == "CIFAR-10 (10 train, first 1 of 2 test images)"
    )


@pytest.mark.parametrize("name", ["auto", "cifar10"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (records(2).tobytes()[:-1], "has 6145 bytes, expected 1 to 10000 records of 3073 bytes"),
        (b"", "has 0 bytes, expected 1 to 10000"),
        (bytes(3073 * 10_001), "has 30733073 bytes, expected 1 to 10000"),
        (bytes(3073) + b"\x0a" + bytes(3072), "record 1 has label 10, expected 0 to 9"),
        (None, "is missing, expected data_batch_1.bin"),
    ],
)
def test_cifar_broken_batch_is_named(
    cifar: Path, name: str, content: bytes | None, message: str
) -> None:
    path = cifar / CIFAR_FOLDER / "data_batch_3.bin"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"data_batch_3.bin.*{message}.*unpack"
    ):
        load_data(name, root=cifar)


def test_cifar_has_one_size(cifar: Path) -> None:
    with pytest.raises(ValueError, match="32x32, got size=16: use"):
        load_data("auto", root=cifar, size=16)


def test_auto_takes_what_is_there(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_data(root=cifar).name == "cifar10"
    monkeypatch.setenv("PCDM_DATA", str(cifar))
    assert load_data("auto").name == "cifar10"

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("auto must not download")

    monkeypatch.setattr(download_module.urllib.request, "urlopen", no_network)
    monkeypatch.setenv("PCDM_DATA", str(tmp_path / "empty"))
    assert load_data("auto").label.startswith("photos32: ")
    with pytest.raises(FileNotFoundError, match="by hand"):
        load_data("cifar10", download=False)


# The archive


@pytest.mark.parametrize("name", ["auto", "cifar10"])
def test_archive_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = tmp_path / "deep" / "er"
    root.mkdir(parents=True)
    content = archive_bytes()
    (root / CIFAR_ARCHIVE).write_bytes(content)
    trust(monkeypatch, content)
    images = load_data(name, root=root)
    assert images.label == "CIFAR-10 (20 of 50000 train, first 7 of 10000 test images)"
    assert {p.name for p in root.iterdir()} == {CIFAR_FOLDER, CIFAR_ARCHIVE}
    assert sorted(p.name for p in (root / CIFAR_FOLDER).iterdir()) == sorted(BATCHES)
    assert not list(tmp_path.rglob("escaped"))
    monkeypatch.setattr(cifar_module, "unpack", None)  # the second time reads the folder
    assert torch.equal(load_data(name, root=root).train, images.train)


def test_archive_with_wrong_checksum_or_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive_bytes()
    (tmp_path / CIFAR_ARCHIVE).write_bytes(content)
    with pytest.raises(
        ValueError, match=f"has {len(content)} bytes, expected 170052171: delete it"
    ):
        load_data("auto", root=tmp_path)
    monkeypatch.setattr(
        cifar_module, "CIFAR10", dataclasses.replace(cifar_module.CIFAR10, bytes=len(content))
    )
    with pytest.raises(
        ValueError, match="has md5 .*, expected c32a1d4ab5d03f1284b67883e8d87530: delete it"
    ):
        load_data("cifar10", root=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [CIFAR_ARCHIVE]


@pytest.mark.parametrize("missing", ["data_batch_1.bin", "test_batch.bin"])
def test_archive_without_a_batch_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    content = archive_bytes(leave_out=missing)
    (tmp_path / CIFAR_ARCHIVE).write_bytes(content)
    trust(monkeypatch, content)
    with pytest.raises(ValueError, match=f"holds no file cifar-10-batches-bin/{missing}"):
        load_data("cifar10", root=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [CIFAR_ARCHIVE]


# The download


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(download_module, "STALL_SECONDS", 0.5)
    for key in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def assert_fails_soon(url: str, root: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.setattr(cifar_module, "CIFAR10", dataclasses.replace(cifar_module.CIFAR10, url=url))
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match=why) as caught:
        load_data("cifar10", root=root)
    assert time.monotonic() - begin < 5
    assert (
        url in str(caught.value)
        and str(root.resolve()) in str(caught.value)
        and "by hand" in str(caught.value)
    )
    assert not root.exists() or not list(root.iterdir())


def test_download_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    content = archive_bytes()
    trust(monkeypatch, content)
    root = tmp_path / "new" / "data"
    with server(content) as url:
        monkeypatch.setattr(
            cifar_module, "CIFAR10", dataclasses.replace(cifar_module.CIFAR10, url=url)
        )
        images = load_data("cifar10", root=root)
    assert len(images.train) == 20
    assert (root / CIFAR_ARCHIVE).read_bytes() == content
    assert {p.name for p in root.iterdir()} == {CIFAR_FOLDER, CIFAR_ARCHIVE}


def test_download_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    root = tmp_path / "data"
    assert_fails_soon(f"http://127.0.0.1:{port}/x", root, monkeypatch, "refused")
    assert not root.exists()


def test_download_name_resolution_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    release = threading.Event()
    monkeypatch.setattr(
        download_module.urllib.request, "urlopen", lambda *_, **__: release.wait(20)
    )
    assert_fails_soon(
        "http://nowhere.invalid/x", tmp_path, monkeypatch, "sent nothing useful for 0.5 s"
    )
    release.set()


HEADERS = b"HTTP/1.0 200 OK\r\nContent-Length: 170052171\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),
        (HEADERS, b""),
        (HEADERS + bytes(300_000), b""),
        (HEADERS, b"x"),
        (b"HTTP/1.0 200 OK\r\n", b"A"),
    ],
    ids=["silent", "headers only", "stalls in the middle", "drips", "drips in the headers"],
)
def test_download_stalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, first: bytes, drip: bytes
) -> None:
    with stalling_server(first, drip) as url:
        assert_fails_soon(url, tmp_path, monkeypatch, "timed out|nothing useful")


def test_download_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    content = archive_bytes()
    trust(monkeypatch, content)
    with server(b"<html>please log in</html>") as url:
        assert_fails_soon(url, tmp_path, monkeypatch, f"has 26 bytes, expected {len(content)}")
    with server(bytes(len(content))) as url:
        assert_fails_soon(url, tmp_path, monkeypatch, "has md5 ")
    with server(bytes(len(content) + 500_000)) as url:
        assert_fails_soon(url, tmp_path, monkeypatch, "bytes, expected")
    with stalling_server(b"HTTP/1.0 200 OK\r\n\r\n", bytes(100_000)) as url:  # endless
        assert_fails_soon(url, tmp_path, monkeypatch, "bytes, expected")
    with server(b"gone", status=404) as url:
        assert_fails_soon(url, tmp_path, monkeypatch, "404")


# A folder of images


def picture(
    path: Path, width: int = 70, height: int = 40, mode: str = "RGB", **options
) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([*path.name.encode()])
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
    image.save(path, **options)
    return np.asarray(image.convert("RGB"))


def test_folder_patches_and_split(tmp_path: Path) -> None:
    first = picture(tmp_path / "a" / "z.png")
    last = picture(tmp_path / "b.WEBP", 33, 64, lossless=True)
    picture(tmp_path / "a" / "zz.jpeg")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._b.png").write_bytes(b"left by a Mac")
    images = load_data(f"folder:{tmp_path}")
    assert (
        images.label
        == f"folder {tmp_path.name}: 2 train / 1 held-out images, 4 train / 2 held-out 32x32 "
        f"patches"
    )
    assert images.name == "folder" and images.source["files"]["first_heldout"] == "b.WEBP"
    assert np.array_equal(images.train[0].permute(1, 2, 0), first[:32, :32])
    assert np.array_equal(images.train[1].permute(1, 2, 0), first[:32, 32:64])
    assert np.array_equal(images.heldout[1].permute(1, 2, 0), last[32:, :32])
    assert load_data(f"folder:{tmp_path}", heldout_limit=1).label.endswith(
        "first 1 of 2 held-out 32x32 patches"
    )
    assert load_data(f"folder:{tmp_path}", size=5).train.shape == (2 * 14 * 8, 3, 5, 5)


def test_folder_holds_out_a_tenth(tmp_path: Path) -> None:
    for i in range(31):
        picture(tmp_path / f"{i:02}.png", 4, 4)
    images = load_data(f"folder:{tmp_path}", size=4)
    assert (len(images.train), len(images.heldout)) == (28, 3)
    assert images.source["files"] == {"train": 28, "heldout": 3, "first_heldout": "28.png"}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_folder_spreads_gray_and_palette(tmp_path: Path, mode: str) -> None:
    expected = picture(tmp_path / "a.png", mode=mode)
    picture(tmp_path / "b.png")
    assert np.array_equal(
        load_data(f"folder:{tmp_path}").train[0].permute(1, 2, 0), expected[:32, :32]
    )


def png16() -> bytes:
    """A 16-bit RGB PNG, which Pillow reads but cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(32 * (1 + 32 * 6)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(png16()), "has 16 bits a channel"),
        (lambda p: Image.fromarray(np.zeros((32, 32), np.uint16)).save(p), "has 16 bits a channel"),
        (lambda p: picture(p, mode="RGBA"), "has transparency"),
        (lambda p: picture(p, mode="LA"), "has transparency"),
        (lambda p: picture(p, mode="P", transparency=0), "has transparency"),
        (lambda p: picture(p, mode="CMYK", format="JPEG"), "has mode CMYK"),
        (
            lambda p: Image.new("L", (32, 32)).save(
                p, save_all=True, append_images=[Image.new("L", (32, 32), 9)]
            ),
            "2 frames",
        ),
        (lambda p: picture(p, 31, 40), "is 31x40 pixels, expected at least 32x32"),
        (lambda p: p.write_bytes(b"nonsense"), "cannot be read"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (lambda p: (picture(p), p.write_bytes(p.read_bytes()[:900])), "cannot be read"),
        (lambda p: picture(p, format="BMP"), "cannot be read"),
    ],
)
def test_folder_names_the_file_it_cannot_use(tmp_path: Path, make, message: str) -> None:
    picture(tmp_path / "a.png")
    make(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=f"odd.png.*{message}.*remove it"):
        load_data(f"folder:{tmp_path}")


def test_folder_missing_empty_or_single(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_data(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="holds 0 images .*expected at least 2"):
        load_data(f"folder:{tmp_path}")
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"holds 1 image \("):
        load_data(f"folder:{tmp_path}")


# The order of training


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 3))
def test_sampler_epochs_and_resume(n: int, batch_size: int, seed: int) -> None:
    sampler = BatchSampler(n, batch_size, seed)
    whole, states = [], []
    for _ in range(6):
        states.append(json.loads(json.dumps(sampler.state_dict())))
        whole.append(sampler.next())
    assert all(batch.shape == (batch_size,) and batch.dtype == torch.int64 for batch in whole)
    stream = torch.cat(whole)
    for begin in range(0, len(stream) - n + 1, n):  # without replacement within an epoch
        assert sorted(stream[begin : begin + n].tolist()) == list(range(n))
    counts = Counter(stream.tolist())
    assert max(counts.values()) - min(counts[i] for i in range(n)) <= 1
    for step, state in enumerate(states):
        resumed = BatchSampler(n, batch_size, seed)
        resumed.load_state_dict(state)
        assert all(torch.equal(resumed.next(), batch) for batch in whole[step:])


def test_sampler_orders_differ_by_seed_and_epoch() -> None:
    first = BatchSampler(100, 100, 0)
    orders = [*(first.next() for _ in range(2)), BatchSampler(100, 100, 1).next()]
    assert len({tuple(order.tolist()) for order in orders}) == 3
    # Frozen: a checkpoint of an older version must resume in the same order.
    assert BatchSampler(10, 10, 0).next().tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    assert [len(b) for b, _ in zip(BatchSampler(3, 7), range(2))] == [7, 7]


@pytest.mark.parametrize(
    ("n", "batch_size", "seed", "name"),
    [(0, 1, 0, "n=0"), (1, 0, 0, "batch_size=0"), (1, 1, -1, "seed=-1")],
)
def test_sampler_bad_arguments(n: int, batch_size: int, seed: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}, expected at least"):
        BatchSampler(n, batch_size, seed)


@pytest.mark.parametrize(
    "change",
    [{"n": 6}, {"batch_size": 3}, {"seed": 1}, {"epoch": -1}, {"position": 6}, {"position": -1}],
)
def test_sampler_refuses_a_foreign_state(change: dict[str, int]) -> None:
    sampler = BatchSampler(5, 2, 0)
    with pytest.raises(ValueError, match="resume with|damaged"):
        sampler.load_state_dict(sampler.state_dict() | change)


def test_random_flip() -> None:
    batch = torch.randint(
        256, (200, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    original = batch.clone()
    flipped = random_flip(batch, torch.Generator().manual_seed(1))
    assert torch.equal(flipped, random_flip(batch, torch.Generator().manual_seed(1)))
    assert torch.equal(batch, original) and flipped.dtype == torch.uint8
    mirrored = [torch.equal(f, b.flip(-1)) for f, b in zip(flipped, batch)]
    assert all(m or torch.equal(f, b) for m, f, b in zip(mirrored, flipped, batch))
    assert 70 < sum(mirrored) < 130


# One image of the reader's


def test_read_square_crops_the_middle_and_averages(tmp_path: Path) -> None:
    """By hand: 70 x 140 pixels hold a square of 64, whose 2x2 blocks are averaged; what lies
    outside it does not matter."""
    pixels = np.zeros((70, 140, 3), np.uint8)
    pixels[3:67, 38:102] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = data.read_square(tmp_path / "a.png")
    expected = (pixels[3:67, 38:102].reshape(32, 2, 32, 2, 3).astype(int).sum((1, 3)) + 2) // 4
    assert found.shape == (1, 3, 32, 32) and found.dtype == torch.uint8
    assert np.array_equal(found[0].permute(1, 2, 0), expected)


def test_read_square_lays_transparency_on_white_and_turns_upright(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 40), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (data.read_square(tmp_path / "clear.png") == 255).all()
    Image.new("L", (33, 33), 7).save(tmp_path / "gray.png")
    assert (data.read_square(str(tmp_path / "gray.png")) == 7).all()
    half = np.zeros((64, 64, 3), np.uint8)
    half[:32] = 255  # white above; the camera was held on its side
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(half).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    turned = data.read_square(tmp_path / "turned.jpg")[0].float()
    assert turned[:, :, 17:].mean() > 250 and turned[:, :, :15].mean() < 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no image"), "cannot be read as PNG"),
        (lambda path: None, "cannot be read as PNG"),
        (
            lambda path: Image.new("RGB", (31, 90)).save(path),
            "31x90 pixels, expected at least 32x32",
        ),
        (
            lambda path: Image.fromarray(np.zeros((40, 40), np.uint16)).save(path),
            "16 bits a channel",
        ),
    ],
)
def test_read_square_names_what_it_cannot_use(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"a\.png.*{message}"):
        data.read_square(tmp_path / "a.png")


# Real data, where there is some


@pytest.mark.skipif(
    not (Path(os.environ.get("PCDM_DATA") or "/nonexistent") / CIFAR_FOLDER).is_dir(),
    reason="PCDM_DATA names no CIFAR-10",
)
def test_real_cifar10() -> None:
    images = load_data("auto", heldout_limit=600)
    assert images.name == "cifar10" and images.label.startswith("CIFAR-10")
    assert images.heldout.shape == (600, 3, 32, 32)
    # The first pixel of the official test set's first image, a cat, and the mean of the training
    # pixels.
    assert images.heldout[0, :, 0, 0].tolist() == [158, 112, 49]
    assert 115 < images.train.float().mean() < 126
