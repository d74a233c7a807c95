"""ImageNet, SVHN and crops: the official formats, what their labels say, and that what is broken,
missing or half-made is never used."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from pcdm_lib import data
from pcdm_lib.data import crops, download, image_cache, imagenet, load_data, svhn
from pcdm_lib.data import images as images_module
from pcdm_lib.data.matlab import read_matlab
from pcdm_lib.data.photos import HELDOUT_PHOTOS, _read_photo
from pcdm_lib.data.svhn import load_svhn

REAL = Path(os.environ.get("PCDM_DATA") or "/nonexistent")


def pixels(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Random images (n, 3, size, size)."""
    return np.random.default_rng([n, size, seed]).integers(0, 256, (n, 3, size, size), np.uint8)


def png(image: np.ndarray, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).convert(mode).save(file, "PNG")
    return file.getvalue()


def make_tar(path: Path, array: np.ndarray) -> Path:
    """A tar archive laid out as that of van den Oord et al., its images in another order than that
    of their names, and other things in it."""
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("../../escaped.png", b"no image"),
            (f"{path.stem}/._1.png", b"left by a Mac"),
            (f"{path.stem}/readme.txt", b"hello"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for i in reversed(range(len(array))):
            content = png(array[i])
            member = tarfile.TarInfo(f"{path.stem}/{i:07}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def batch(array: np.ndarray, **change: object) -> bytes:
    """One npz batch of Chrabaszcz et al."""
    file = io.BytesIO()
    flat = array.reshape(len(array), -1)
    content = {"data": flat, "labels": np.arange(1, len(array) + 1), "mean": flat.mean(0)} | change
    np.savez(file, **{key: value for key, value in content.items() if value is not None})
    return file.getvalue()


def make_zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"__MACOSX/{path.stem}/._val_data.npz", b"left by a Mac")
        archive.writestr("../../escaped", b"")
        for name, content in members.items():
            archive.writestr(f"{path.stem}/{name}.npz", content)
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A data folder with 5 train and 4 validation images of the old 32x32 set."""
    make_tar(tmp_path / "train_32x32.tar", pixels(5))
    make_tar(tmp_path / "valid_32x32.tar", pixels(4))
    return tmp_path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A data folder with two batches, 3 and 2 images, and 4 validation images of the new 32x32
    set."""
    make_zip(
        tmp_path / "Imagenet32_train_npz.zip",
        train_data_batch_2=batch(pixels(2)),
        train_data_batch_1=batch(pixels(3)),
    )
    make_zip(tmp_path / "Imagenet32_val_npz.zip", val_data=batch(pixels(4), mean=None))
    return tmp_path


def complete(monkeypatch: pytest.MonkeyPatch, name: str, train: int, heldout: int) -> None:
    """Let a set be published with so many images."""
    published = imagenet.SETS[name]
    train, heldout = (
        dataclasses.replace(published.train, images=train),
        dataclasses.replace(published.heldout, images=heldout),
    )
    monkeypatch.setitem(
        imagenet.SETS, name, dataclasses.replace(published, train=train, heldout=heldout)
    )


def replace_blocks(monkeypatch: pytest.MonkeyPatch, name: str, blocks: object) -> None:
    monkeypatch.setitem(
        imagenet.SETS, name, dataclasses.replace(imagenet.SETS[name], blocks=blocks)
    )


def no_reading(*_: object) -> Iterator[np.ndarray]:
    raise AssertionError("the cache should have been used")


# Names


def test_names_are_listed_and_a_bare_imagenet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected one of auto.*svhn.*imagenet32-old.*imagenet64-new, imagenet128:PATH, "
        r"crops:PATH",
    ):
        load_data("imagenet", root=tmp_path)
    for name in ("imagenet128:", "imagenet128", "crops:", "crops"):
        with pytest.raises(ValueError, match="unknown dataset"):
            load_data(name, root=tmp_path)
    for name in ("imagenet32", "imagenet64"):
        with pytest.raises(
            ValueError,
            match=f"{name} is what two sets.*bits per dimension differ.*{name}-old.*{name}-new",
        ):
            load_data(name, root=tmp_path)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("imagenet32-old", ["train_32x32.tar", "valid_32x32.tar"]),
        ("imagenet64-old", ["train_64x64.tar", "valid_64x64.tar"]),
        ("imagenet32-new", ["Imagenet32_train_npz.zip", "Imagenet32_val_npz.zip"]),
        (
            "imagenet64-new",
            [
                "Imagenet64_train_part1_npz.zip",
                "Imagenet64_train_part2_npz.zip",
                "Imagenet64_val_npz.zip",
            ],
        ),
    ],
)
def test_missing_imagenet_says_what_to_get_and_where_to_put_it(
    name: str, files: list[str], tmp_path: Path
) -> None:
    with pytest.raises(
        FileNotFoundError, match="cannot be downloaded without a login.*image-net.org"
    ) as caught:
        load_data(name, root=tmp_path)
    assert (
        ", ".join(files) in str(caught.value)
        and str(tmp_path.resolve()) in str(caught.value)
        and f"{name}/" in str(caught.value)
    )
    with pytest.raises(ValueError, match=f"{name} are (32x32|64x64), got size=16"):
        load_data(name, root=tmp_path, size=16)


# ImageNet as van den Oord et al. made it


def test_old_imagenet_from_archives(old: Path) -> None:
    found = load_data("imagenet32-old", root=old)
    assert found.name == "imagenet32-old"
    assert (
        found.label
        == "ImageNet 32x32 (old: van den Oord et al. 2016), 5 of 1281149 train, 4 of 49999 "
        "validation images"
    )
    assert found.train.dtype == found.heldout.dtype == torch.uint8
    # in the order of the names
    assert np.array_equal(found.train, pixels(5)) and np.array_equal(found.heldout, pixels(4))
    for part in ("train", "heldout"):
        assert (
            found.source[f"{part}_sha256"]
            == hashlib.sha256(getattr(found, part).numpy().tobytes()).hexdigest()
        )
    assert json.loads(json.dumps(found.source)) == found.source
    assert (
        found.source["files"] == ["train_32x32.tar", "valid_32x32.tar"]
        and found.source["train_count"] == 5
    )
    kept = {
        "train_32x32.tar",
        "valid_32x32.tar",
        "imagenet32-old-train.cache",
        "imagenet32-old-validation.cache",
    }
    assert {path.name for path in old.iterdir()} == kept and not list(old.parent.rglob("escaped*"))
    assert load_data("imagenet32-old", root=old, size=32).label == found.label


def test_old_imagenet_limit_and_full_set(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = load_data("imagenet32-old", root=old, heldout_limit=3)
    assert limited.label.endswith("5 of 1281149 train, first 3 of 4 (of 49999) validation images")
    assert np.array_equal(limited.heldout, pixels(4)[:3])
    assert limited.source["heldout_sha256"] == hashlib.sha256(pixels(4)[:3].tobytes()).hexdigest()
    complete(monkeypatch, "imagenet32-old", 5, 4)
    assert (
        load_data("imagenet32-old", root=old).label
        == "ImageNet 32x32 (old: van den Oord et al. 2016)"
    )
    assert load_data("imagenet32-old", root=old, heldout_limit=1).label.endswith(
        "), 5 train, first 1 of 4 validation images"
    )


def test_old_imagenet_from_folders_in_its_own_folder(tmp_path: Path) -> None:
    own = tmp_path / "imagenet64-old"
    for name, array in (("train_64x64", pixels(3, 64)), ("valid_64x64", pixels(2, 64))):
        (own / name).mkdir(parents=True)
        for i, image in enumerate(array):
            (own / name / f"{i}.png").write_bytes(png(image))
        (own / name / "._0.png").write_bytes(b"left by a Mac")
    found = load_data("imagenet64-old", root=tmp_path)
    assert (
        found.label
        == "ImageNet 64x64 (old: van den Oord et al. 2016), 3 of 1281149 train, 2 of 49999 "
        "validation images"
    )
    assert np.array_equal(found.train, pixels(3, 64)) and np.array_equal(
        found.heldout, pixels(2, 64)
    )
    assert (own / "imagenet64-old-train.cache").is_dir()
    (own / "train_64x64" / "3.png").write_bytes(png(pixels(1, 64)[0]))
    assert len(load_data("imagenet64-old", root=tmp_path).train) == 4


def test_archive_and_folder_give_the_same(
    old: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("unpacked")
    for name in ("train_32x32", "valid_32x32"):
        with tarfile.open(old / f"{name}.tar") as tar:
            for member in tar:
                if member.name.startswith(name):
                    (other / name).mkdir(exist_ok=True)
                    (other / member.name).write_bytes(tar.extractfile(member).read())
    first, second = load_data("imagenet32-old", root=old), load_data("imagenet32-old", root=other)
    assert (
        first.source["train_sha256"] == second.source["train_sha256"]
        and first.source["heldout_sha256"] == second.source["heldout_sha256"]
    )


def cut(part: float):
    return lambda path: path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


def at_member_boundary(path: Path) -> None:
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:offset])


def tar_of(content: bytes):
    def make(path: Path) -> None:
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo(f"{path.stem}/1.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    return make


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            cut(0.45),
            r"train_32x32.tar is cut short or no tar archive \(unexpected end of data\): fetch it "
            r"again",
        ),
        (at_member_boundary, r"is cut short or no tar archive \(no end-of-archive mark\)"),
        (cut(0.001), "is cut short or no tar archive"),
        (lambda path: path.write_bytes(b""), "is cut short or no tar archive"),
        (
            lambda path: path.write_bytes(b"<html>please log in</html>"),
            "is cut short or no tar archive",
        ),
        (
            lambda path: make_tar(path, pixels(0)),
            "train_32x32.tar holds no .png files of ImageNet 32x32",
        ),
        (
            lambda path: make_tar(path, pixels(2, 64)),
            "0000000.png in .*train_32x32.tar is 64x64 pixels, expected 32x32",
        ),
        (tar_of(b"nonsense"), "1.png in .*train_32x32.tar cannot be read"),
        (tar_of(png(pixels(1)[0], "RGBA")), "1.png in .* has transparency"),
    ],
)
def test_broken_old_imagenet_leaves_no_cache(old: Path, damage, message: str) -> None:
    damage(old / "train_32x32.tar")
    with pytest.raises(ValueError, match=message):
        load_data("imagenet32-old", root=old)
    assert {path.name for path in old.iterdir()} == {"train_32x32.tar", "valid_32x32.tar"}


def test_more_images_than_published_are_another_set(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(monkeypatch, "imagenet32-old", 4, 4)
    with pytest.raises(
        ValueError, match="train_32x32.tar holds more than the 4 images of ImageNet 32x32"
    ):
        load_data("imagenet32-old", root=old)


# ImageNet as Chrabaszcz et al. made it


def test_new_imagenet_from_archives(new: Path) -> None:
    found = load_data("imagenet32-new", root=new)
    assert (
        found.label
        == "ImageNet 32x32 (new: Chrabaszcz et al. 2017, box), 5 of 1281167 train, 4 of 50000 "
        "validation images"
    )
    assert np.array_equal(found.train, np.concatenate([pixels(3), pixels(2)])) and np.array_equal(
        found.heldout, pixels(4)
    )
    kept = {
        "Imagenet32_train_npz.zip",
        "Imagenet32_val_npz.zip",
        "imagenet32-new-train.cache",
        "imagenet32-new-validation.cache",
    }
    assert {path.name for path in new.iterdir()} == kept and not list(new.parent.rglob("escaped"))
    assert load_data("imagenet32-new", root=new, heldout_limit=1).label.endswith(
        "first 1 of 4 (of 50000) validation images"
    )


def test_new_imagenet_channels_by_hand(tmp_path: Path) -> None:
    """In a row of `data` the red of all pixels comes first, row by row."""
    row = np.concatenate([np.arange(1024) % 256, np.full(1024, 7), np.full(1024, 9)]).astype(
        np.uint8
    )[None]
    make_zip(tmp_path / "Imagenet32_train_npz.zip", train_data_batch_1=batch(row))
    make_zip(tmp_path / "Imagenet32_val_npz.zip", val_data=batch(row))
    image = load_data("imagenet32-new", root=tmp_path).train[0]
    assert (
        image[0, 0].tolist() == list(range(32))
        and image[0, 1, 0] == 32
        and (image[1] == 7).all()
        and (image[2] == 9).all()
    )


def test_new_imagenet64_has_two_parts_and_may_lie_unpacked(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / f"Imagenet64_train_part{number}_npz"
        folder.mkdir()
        (folder / f"train_data_batch_{number}.npz").write_bytes(batch(pixels(number, 64)))
    with pytest.raises(FileNotFoundError, match="no Imagenet64_val_npz.zip"):
        load_data("imagenet64-new", root=tmp_path)
    make_zip(tmp_path / "Imagenet64_val_npz.zip", val_data=batch(pixels(3, 64)))
    found = load_data("imagenet64-new", root=tmp_path)
    assert (
        found.label
        == "ImageNet 64x64 (new: Chrabaszcz et al. 2017, box), 3 of 1281167 train, 3 of 50000 "
        "validation images"
    )
    assert np.array_equal(
        found.train, np.concatenate([pixels(1, 64), pixels(2, 64)])
    ) and found.heldout.shape == (3, 3, 64, 64)
    shutil.rmtree(tmp_path / "Imagenet64_train_part2_npz")
    with pytest.raises(FileNotFoundError, match="no Imagenet64_train_part2_npz.zip"):
        load_data("imagenet64-new", root=tmp_path)


FLAT = pixels(3).reshape(3, -1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (batch(FLAT, data=None), "has the keys labels, mean, expected data and labels"),
        (batch(FLAT, labels=None), "has the keys data, mean, expected data and labels"),
        (
            batch(FLAT, data=FLAT[:, :-1]),
            r"has data of uint8 \(3, 3071\), expected uint8 \(N, 3072\)",
        ),
        (batch(FLAT, data=pixels(3)), r"has data of uint8 \(3, 3, 32, 32\)"),
        (batch(FLAT, data=FLAT.astype(np.float32)), "has data of float32"),
        (
            batch(FLAT, data=FLAT[:0], labels=np.arange(0)),
            r"has data of uint8 \(0, 3072\), expected .*N at least 1",
        ),
        (batch(FLAT, labels=np.arange(2)), r"has labels of int64 \(2,\), expected integers \(3,\)"),
        (batch(FLAT, labels=np.ones(3)), "has labels of float64"),
        (
            batch(FLAT, data=np.array([{"evil": 1}] * 3, object)),
            "cannot be read as npz .Object arrays cannot be loaded",
        ),
        (
            batch(FLAT, labels=np.array([print] * 3, object)),
            "cannot be read as npz .Object arrays cannot be loaded",
        ),
        (batch(FLAT)[:-30], "cannot be read as npz"),
        (batch(FLAT)[:4000], "cannot be read as npz"),
        (b"", "cannot be read as npz"),
        (b"\x80\x04}\x94.", "cannot be read as npz"),
    ],
)
def test_broken_batch_is_named_and_leaves_no_cache(new: Path, content: bytes, message: str) -> None:
    make_zip(
        new / "Imagenet32_train_npz.zip",
        train_data_batch_1=batch(pixels(3)),
        train_data_batch_2=content,
    )
    with pytest.raises(
        ValueError, match=rf"train_data_batch_2.npz in .*Imagenet32_train_npz.zip {message}"
    ):
        load_data("imagenet32-new", root=new)
    assert {path.name for path in new.iterdir()} == {
        "Imagenet32_train_npz.zip",
        "Imagenet32_val_npz.zip",
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(0.5), "Imagenet32_val_npz.zip is cut short or no zip archive"),
        (
            lambda path: path.write_bytes(b"<html>please log in</html>"),
            "is cut short or no zip archive",
        ),
        (
            lambda path: make_zip(path),
            "Imagenet32_val_npz.zip holds no .npz files of ImageNet 32x32",
        ),
        (
            lambda path: make_zip(path, train_data_batch_1=batch(pixels(3))),
            "Imagenet32_val_npz.zip holds no .npz files",
        ),
    ],
)
def test_broken_zip_is_named(new: Path, damage, message: str) -> None:
    damage(new / "Imagenet32_val_npz.zip")
    with pytest.raises(ValueError, match=message):
        load_data("imagenet32-new", root=new)


def test_missing_batch_in_the_middle_is_named(new: Path) -> None:
    make_zip(
        new / "Imagenet32_train_npz.zip",
        train_data_batch_1=batch(pixels(3)),
        train_data_batch_10=batch(pixels(2)),
    )
    with pytest.raises(ValueError, match="lacks batch 2 of 10"):
        load_data("imagenet32-new", root=new)


# The cache


def test_cache_is_used_and_what_is_written_into_the_images_stays_out_of_it(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_data("imagenet32-old", root=old)
    first.train.zero_()
    replace_blocks(monkeypatch, "imagenet32-old", no_reading)
    again = load_data("imagenet32-old", root=old)
    assert np.array_equal(again.train, pixels(5)) and again.source == first.source


def test_cache_is_made_anew_where_the_source_changed(old: Path) -> None:
    load_data("imagenet32-old", root=old)
    make_tar(old / "train_32x32.tar", pixels(6))
    found = load_data("imagenet32-old", root=old)
    assert (
        np.array_equal(found.train, pixels(6))
        and found.source["train_sha256"] == hashlib.sha256(pixels(6).tobytes()).hexdigest()
    )
    stat = (old / "valid_32x32.tar").stat()
    # of the same size: the time of change tells it
    make_tar(old / "valid_32x32.tar", pixels(4, seed=1))
    os.utime(old / "valid_32x32.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert np.array_equal(load_data("imagenet32-old", root=old).heldout, pixels(4, seed=1))


def damage_facts(**change: object):
    def damage(cache: Path) -> None:
        facts = json.loads((cache / "facts.json").read_text())
        (cache / "facts.json").write_text(json.dumps(facts | change))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: cut(0.9)(cache / "images.npy"),
        lambda cache: (cache / "images.npy").write_bytes(
            (cache / "images.npy").read_bytes() + b"more"
        ),
        lambda cache: (cache / "images.npy").write_bytes(b""),
        lambda cache: (cache / "images.npy").unlink(),
        lambda cache: np.save(cache / "images.npy", pixels(4)),
        lambda cache: np.save(cache / "images.npy", pixels(5).astype(np.int8)),
        lambda cache: np.save(cache / "images.npy", np.uint8(0)),
        lambda cache: cut(0.5)(cache / "facts.json"),
        lambda cache: (cache / "facts.json").write_text("[]"),
        lambda cache: (cache / "facts.json").unlink(),
        damage_facts(format=0),
        damage_facts(shape=[6, 3, 32, 32]),
        damage_facts(sha256=None),
        damage_facts(source={}),
        lambda cache: shutil.rmtree(cache),
    ],
)
def test_damaged_cache_is_made_anew(old: Path, damage) -> None:
    first = load_data("imagenet32-old", root=old)
    damage(old / "imagenet32-old-train.cache")
    again = load_data("imagenet32-old", root=old)
    assert np.array_equal(again.train, pixels(5)) and again.source == first.source
    assert sorted(path.name for path in (old / "imagenet32-old-train.cache").iterdir()) == [
        "facts.json",
        "images.npy",
    ]


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt,
        ValueError("broken image"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_interrupted_cache_leaves_what_was_there(
    old: Path, monkeypatch: pytest.MonkeyPatch, error
) -> None:
    def interrupted(*_: object) -> Iterator[np.ndarray]:
        yield pixels(2)
        raise error

    before = {path.name for path in old.iterdir()}
    with (
        monkeypatch.context() as patch,
        pytest.raises(type(error) if isinstance(error, Exception) else error),
    ):
        replace_blocks(patch, "imagenet32-old", interrupted)
        load_data("imagenet32-old", root=old)
    assert {path.name for path in old.iterdir()} == before
    load_data("imagenet32-old", root=old)
    stat = (old / "train_32x32.tar").stat()
    os.utime(old / "train_32x32.tar", ns=(0, 0))
    with (
        monkeypatch.context() as patch,
        pytest.raises(type(error) if isinstance(error, Exception) else error),
    ):
        replace_blocks(patch, "imagenet32-old", interrupted)
        load_data("imagenet32-old", root=old)
    os.utime(old / "train_32x32.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    # the cache of the file as it was is still whole
    replace_blocks(monkeypatch, "imagenet32-old", no_reading)
    assert np.array_equal(load_data("imagenet32-old", root=old).train, pixels(5))


def test_cache_that_another_process_made_meanwhile_is_taken(tmp_path: Path) -> None:
    facts = {"shape": (3, 8, 8), "total": 2, "title": "test"}

    def make() -> Iterator[np.ndarray]:
        yield pixels(2, 8)
        # another process ends first
        image_cache.cached(tmp_path / "a", {}, lambda: [pixels(2, 8)], **facts)
        raise OSError(errno.ENOTEMPTY, "what renaming onto a full folder says")

    found, digest = image_cache.cached(tmp_path / "a", {}, make, **facts)
    assert (
        np.array_equal(found, pixels(2, 8))
        and digest == hashlib.sha256(pixels(2, 8).tobytes()).hexdigest()
    )


def test_cache_larger_than_memory_is_mapped_for_reading(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = np.load

    def refuse(path: Path, mmap_mode: str | None = None, **rest: object) -> np.ndarray:
        if mmap_mode == "c":
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return original(path, mmap_mode=mmap_mode, **rest)

    monkeypatch.setattr(image_cache.np, "load", refuse)
    assert np.array_equal(load_data("imagenet32-old", root=old).train, pixels(5))


def test_folder_that_cannot_be_written_is_named(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache.os, "access", lambda *_: False)
    with pytest.raises(
        PermissionError, match="cannot be written.*imagenet32-old-train.cache.*links to the data"
    ):
        load_data("imagenet32-old", root=old)


# ImageNet from a folder


def picture(
    path: Path, width: int, height: int, mode: str = "RGB", **options: object
) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(width * 1000 + height).integers(
        0, 256, (height, width, 3), np.uint8
    )
    Image.fromarray(array).convert(mode).save(path, **options)
    return array


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder laid out as ImageNet, classes and all."""
    picture(tmp_path / "train" / "n01" / "a.png", 384, 256)
    picture(tmp_path / "train" / "n01" / "b.JPEG", 130, 300, format="JPEG")
    picture(tmp_path / "train" / "n02" / "c.JPEG", 200, 150, "CMYK", format="JPEG")
    picture(tmp_path / "train" / "n02" / "small.png", 127, 300)
    picture(tmp_path / "val" / "d.png", 128, 128)
    picture(tmp_path / "val" / "e.png", 129, 128, "RGBA")
    return tmp_path


def test_imagenet128_from_a_folder(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"imagenet128:{photographs}"
    found = load_data(name)
    how = "shorter side to 128 by area, Pillow's BOX, then the middle"
    assert (
        found.label
        == f"ImageNet 128x128 (folder {photographs.name}: {how}), 3 train / 2 validation images, "
        f"1 smaller one left out"
    )
    assert (
        found.name == "imagenet128"
        and found.train.shape == (3, 3, 128, 128)
        and found.source["left_out"] == 1
    )
    # 384 x 256 halves to 192 x 128: means of 2 x 2, of which the middle 128 columns are kept.
    # Pillow rounds after each side.
    expected = (
        picture(photographs / "x.png", 384, 256).reshape(128, 2, 192, 2, 3).mean((1, 3))[:, 32:160]
    )
    assert np.abs(found.train[0].permute(1, 2, 0).numpy() - expected).max() <= 1
    assert np.array_equal(
        found.heldout[0].permute(1, 2, 0), picture(photographs / "x.png", 128, 128)
    )
    assert load_data(name, size=128, heldout_limit=1).label.endswith(
        "3 train / first 1 of 2 validation images, 1 smaller one left out"
    )
    monkeypatch.setattr(imagenet, "decode_rgb", no_reading)
    assert load_data(name).source == found.source
    picture(photographs / "train" / "n02" / "f.png", 140, 140)
    monkeypatch.undo()
    assert len(load_data(name).train) == 4


@pytest.mark.parametrize(
    ("width", "height"), [(128, 128), (128, 401), (131, 129), (500, 375), (375, 500)]
)
def test_reduce_to_keeps_the_middle(width: int, height: int) -> None:
    """A ramp from 0 to 255 over the longer side stays symmetric about its middle."""
    longer = max(width, height)
    ramp = np.linspace(0, 255, longer).astype(np.uint8)
    image = np.broadcast_to(
        ramp[None, :, None] if width == longer else ramp[:, None, None], (height, width, 3)
    ).copy()
    small = imagenet.reduce_to(image, 128)
    assert small.shape == (3, 128, 128) and small.dtype == np.uint8
    assert abs(small.astype(float).mean() - 127.5) < 1.5
    assert imagenet.reduce_to(image[:127], 128) is None


def test_imagenet128_names_what_it_cannot_use(photographs: Path, tmp_path: Path) -> None:
    name = f"imagenet128:{photographs}"
    with pytest.raises(ValueError, match="128x128, got size=64"):
        load_data(name, size=64)
    (photographs / "train" / "n02" / "z.jpg").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="z.jpg cannot be read"):
        load_data(name)
    assert not list(photographs.glob("*.cache")) and not list(photographs.glob(".*"))
    (photographs / "train" / "n02" / "z.jpg").unlink()
    shutil.rmtree(photographs / "val")
    with pytest.raises(FileNotFoundError, match="val is not a folder: give imagenet128:PATH"):
        load_data(name)
    picture(photographs / "val" / "a.png", 50, 50)
    with pytest.raises(ValueError, match="val holds 1 images, none of at least 128x128"):
        load_data(name)


# SVHN


def digits(n: int) -> np.ndarray:
    return pixels(n).transpose(2, 3, 1, 0)  # (32, 32, 3, n)


def write_mat(path: Path, n: int, **change: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"X": digits(n), "y": np.ones((n, 1), np.uint8)} | change
    scipy.io.savemat(
        path,
        {key: value for key, value in content.items() if value is not None},
        do_compression=True,
    )
    return path


@pytest.mark.parametrize("inner", ["svhn", "."])
def test_svhn(tmp_path: Path, inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mat(tmp_path / inner / "train_32x32.mat", 6)
    write_mat(tmp_path / inner / "test_32x32.mat", 4, y=None)
    found = load_data("svhn", root=tmp_path)
    assert (
        found.name == "svhn"
        and found.label == "SVHN (first 6 of 73257 train, first 4 of 26032 test images)"
    )
    assert np.array_equal(found.train, pixels(6)) and np.array_equal(found.heldout, pixels(4))
    assert load_data("svhn", root=tmp_path, heldout_limit=2).label.endswith(
        "first 2 of 26032 test images)"
    )
    array, label = load_svhn(tmp_path, "train", 5)
    assert label == "SVHN (first 5 of 73257 train images)" and np.array_equal(array, pixels(6)[:5])
    assert array.dtype == torch.uint8 and array.is_contiguous()
    monkeypatch.setattr(svhn, "COUNTS", {"train": 6, "test": 4})
    assert (
        load_data("svhn", root=tmp_path).label == "SVHN"
        and load_svhn(tmp_path)[1] == "SVHN (4 test images)"
    )
    with pytest.raises(ValueError, match="32x32, got size=64"):
        load_data("svhn", root=tmp_path, size=64)


def test_svhn_without_a_test_file(tmp_path: Path) -> None:
    write_mat(tmp_path / "svhn" / "train_32x32.mat", 6)
    with pytest.raises(
        FileNotFoundError,
        match="no test_32x32.mat in .*fetch http://ufldl.stanford.edu/housenumbers/test_32x32.mat "
        "by hand",
    ):
        load_data("svhn", root=tmp_path, download=False)
    with pytest.raises(FileNotFoundError, match="no test_32x32.mat in"):
        load_svhn(tmp_path)
    assert len(load_svhn(tmp_path, "train")[0]) == 6
    for arguments, message in ((("extra",), "split='extra'"), (("train", 0), "limit=0")):
        with pytest.raises(ValueError, match=message):
            load_svhn(tmp_path, *arguments)


def text_file(path: Path) -> None:
    path.write_text("<html>please log in</html>" * 20)


@pytest.mark.parametrize("pressed", (True, False))
@pytest.mark.parametrize("order", ("<", ">"))
def test_matlab_files_as_scipy_reads_them(tmp_path: Path, pressed: bool, order: str) -> None:
    path = tmp_path / "a.mat"
    content = {"X": digits(5), "one": np.ones((1, 1), np.uint8), "y": np.ones((5, 1))}
    scipy.io.savemat(path, content, do_compression=pressed)
    if order == ">" and not pressed:  # SciPy writes the machine's order only
        path.write_bytes(in_other_order(path.read_bytes()))
    found = read_matlab(path, {"X": 3072 * 5, "one": 1})
    for name, values in scipy.io.loadmat(path).items():
        if not name.startswith("__"):
            assert found[name].kind == values.dtype.name and found[name].shape == values.shape
            assert name == "y" or np.array_equal(found[name].values, values)
    with pytest.raises(ValueError, match="has more than 15359 bytes"):
        read_matlab(path, {"X": 3072 * 5 - 1})


def in_other_order(data: bytes) -> bytes:
    """An uncompressed MATLAB file with the bytes of its numbers in the other order."""
    found, at = bytearray(data[:124] + data[125:123:-1] + b"MI"), 128
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind >> 16:
            found += struct.pack(">I", kind) + swapped(kind & 0xFFFF, data[at + 4 : at + 8])
            at += 8
            continue
        found += struct.pack(">II", kind, length)
        at += 8
        if kind != 14:
            part = data[at : at + length + -length % 8]
            found += swapped(kind, part)
            at += len(part)
    return bytes(found)


def swapped(kind: int, part: bytes) -> bytes:
    width = {5: 4, 6: 4, 9: 8}.get(kind, 1)
    return b"".join(part[k : k + width][::-1] for k in range(0, len(part), width))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *((cut(part), "is cut short or no MATLAB file") for part in (0.0, 0.001, 0.01, 0.3, 0.9)),
        (text_file, "is cut short or no MATLAB file"),
        (lambda path: write_mat(path, 3, X=None, x=digits(3)), "has no variable X"),
        (
            lambda path: write_mat(path, 3, X=digits(3)[:31]),
            r"has X of uint8 \(31, 32, 3, 3\), expected uint8 \(32, 32, 3, N\)",
        ),
        (lambda path: write_mat(path, 3, X=pixels(3)), r"has X of uint8 \(3, 3, 32, 32\)"),
        (lambda path: write_mat(path, 3, X=digits(3)[..., 0]), r"has X of uint8 \(32, 32, 3\)"),
        (lambda path: write_mat(path, 3, X=digits(3).astype(float)), "has X of float64"),
        (lambda path: write_mat(path, 3, X="digits"), "has X of text"),
        (lambda path: write_mat(path, 4, X=digits(3)), "has 3 images and 4 labels"),
    ],
)
def test_svhn_broken_file_is_named_and_kept(tmp_path: Path, damage, message: str) -> None:
    path = write_mat(tmp_path / "train_32x32.mat", 3)
    damage(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"train_32x32.mat {message}.*delete it, then fetch http"):
        load_svhn(tmp_path, "train")
    assert path.read_bytes() == before


def publish(monkeypatch: pytest.MonkeyPatch, path: Path, sent: bytes | None = None) -> list[str]:
    """Let both SVHN files be what lies at `path`, and what arrives `sent`; returns the addresses
    asked for."""
    content, asked = path.read_bytes(), []
    known = {"md5": hashlib.md5(content).hexdigest(), "bytes": len(content)}
    monkeypatch.setattr(
        svhn,
        "FILES",
        {split: dataclasses.replace(file, **known) for split, file in svhn.FILES.items()},
    )

    def stream(url: str) -> Iterator[bytes]:
        asked.append(url)
        yield from (b"", content if sent is None else sent)

    monkeypatch.setattr(download, "_stream", stream)
    return asked


def test_svhn_is_fetched_when_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = publish(monkeypatch, write_mat(tmp_path / "published.mat", 3))
    root = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match="by hand"):
        load_data("svhn", root=root, download=False)
    assert load_data("auto", root=root).name == "photos" and not asked and not root.exists()
    assert (
        load_data("svhn", root=root).label
        == "SVHN (first 3 of 73257 train, first 3 of 26032 test images)"
    )
    assert asked == [
        f"http://ufldl.stanford.edu/housenumbers/{split}_32x32.mat" for split in ("train", "test")
    ]
    assert {path.name for path in (root / "svhn").iterdir()} == {
        "train_32x32.mat",
        "test_32x32.mat",
    }
    load_data("svhn", root=root)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("sent", "message"), [(b"<html>", "has 6 bytes, expected"), (None, "has md5 ")]
)
def test_svhn_of_another_checksum_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes | None, message: str
) -> None:
    official = write_mat(tmp_path / "published.mat", 3)
    mine = write_mat(tmp_path / "data" / "svhn" / "train_32x32.mat", 2).read_bytes()
    publish(monkeypatch, official, bytes(official.stat().st_size) if sent is None else sent)
    with pytest.raises(
        ConnectionError, match=rf"SVHN \(test\) could not be downloaded.*{message}.*by hand"
    ):
        load_data("svhn", root=tmp_path / "data")
    (only,) = (tmp_path / "data" / "svhn").iterdir()
    assert only.name == "train_32x32.mat" and only.read_bytes() == mine


# Crops of large photographs


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-one photographs of both orientations; red names the file, green the row and blue the
    column; the border is white."""
    folder = tmp_path_factory.mktemp("large")
    for i in range(21):
        height, width = (120, 168) if i % 2 else (168, 120)
        image = np.empty((height, width, 3), np.uint8)
        image[..., 0], image[..., 1], image[..., 2] = (
            i,
            np.arange(height)[:, None],
            np.arange(width),
        )
        for edge in (np.s_[:16], np.s_[-16:], np.s_[:, :16], np.s_[:, -16:]):
            image[edge] = 255
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


def places(crop_set: torch.Tensor) -> list[tuple[int, int, int]]:
    """(file, top, left) of each crop, and that each shows one file's rows and columns in order."""
    first, size = crop_set[:, :, 0, 0], crop_set.shape[-1]
    steps = torch.arange(size)
    expected = torch.stack(
        [torch.zeros(size, size), steps[:, None].expand(size, size), steps.expand(size, size)]
    )
    assert torch.equal(crop_set.float(), first[:, :, None, None] + expected)
    return [tuple(place) for place in first.tolist()]


@pytest.mark.parametrize("size", [32, 64, 88])
def test_crops_random(large: Path, size: int) -> None:
    found = load_data(f"crops:{large}?count=200", size=size)
    train, heldout = places(found.train), places(found.heldout)
    # no white: the margin is kept
    assert len(train) == 200 and set(found.train[:, 0].unique().tolist()) == set(range(19))
    share = np.bincount([file for file, *_ in train])
    assert set(share) == {10, 11}
    for file, top, left in train:
        height, width = (120, 168) if file % 2 else (168, 120)
        assert 16 <= top <= height - 16 - size and 16 <= left <= width - 16 - size
    across, along = 88 // size, 136 // size
    grid = {(19, 16 + size * i, 16 + size * j) for i in range(across) for j in range(along)}
    grid |= {(20, 16 + size * i, 16 + size * j) for i in range(along) for j in range(across)}
    assert set(heldout) == grid and len(heldout) == len(grid)
    assert found.name == "crops" and found.label == (
        f"crops of {large.name}: 19 train / 2 held-out photographs, 200 random (seed 0) train / "
        f"{len(grid)} held-out {size}x{size} crops, "
        "16 pixels or more from the border"
    )
    assert found.source["files"] == {"train": 19, "heldout": 2, "first_heldout": "19.png"}
    assert found.source["options"] == {"train": "random", "count": 200, "margin": 16, "seed": 0}
    if size < 88:  # the corners are reached, and no further
        assert (
            min(top for _, top, _ in train) <= 18
            and max(left for _, _, left in train) >= 148 - size
        )


def test_crops_are_the_same_every_time_and_everywhere(large: Path) -> None:
    first, again, other = (load_data(f"crops:{large}?count=50&seed={seed}") for seed in (3, 3, 4))
    assert first.source == again.source and torch.equal(first.train, again.train)
    assert first.source["train_sha256"] != other.source["train_sha256"] and torch.equal(
        first.heldout, other.heldout
    )
    # Frozen: a run that is resumed must find the crops that it was trained on.
    assert places(load_data(f"crops:{large}?count=2000").train)[:3] == [
        (0, 105, 20),
        (0, 82, 19),
        (0, 69, 54),
    ]
    assert (
        load_data(f"crops:{large}").source["options"]["count"]
        == len(load_data(f"crops:{large}").train)
        == 2000
    )


def test_crops_grid_margin_and_limit(large: Path) -> None:
    found = load_data(f"crops:{large}?train=grid&margin=20&count=7", size=40)
    assert (
        len(found.train) == 19 * 2 * 3
        and "114 non-overlapping train / 12 held-out 40x40 crops, 20 pixels or more" in found.label
    )
    assert {top for _, top, _ in places(found.train)} == {20, 60, 100}
    limited = load_data(f"crops:{large}?train=grid&margin=20", size=40, heldout_limit=4)
    assert "first 4 of 12 held-out" in limited.label and torch.equal(
        limited.heldout, found.heldout[:4]
    )
    assert {file for file, *_ in places(limited.heldout)} == {19, 20}  # a limit keeps some of each
    with pytest.raises(
        ValueError,
        match="00.png is 120x168 pixels, expected at least 121x121: remove it, or choose a "
        "smaller size than 89 or",
    ):
        load_data(f"crops:{large}?train=grid", size=89)
    assert load_data(f"crops:{large}?count=1&margin=0", size=120).train.shape == (1, 3, 120, 120)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size=64", "'size=64', expected crops:PATH.*train, count, margin, seed"),
        ("train", "'train', expected crops:PATH"),
        ("", ""),
        ("count=5&", "'', expected"),
        ("count=5&count=6", "count twice"),
        ("train=all", "train='all', expected random or grid"),
        ("count=0", "count='0', expected an integer of at least 1"),
        ("count=-5", "count='-5', expected an integer"),
        ("margin=1.5", "margin='1.5', expected an integer of at least 0"),
        ("seed=", "seed='', expected an integer of at least 0"),
        ("seed=²", "seed='²', expected an integer"),
    ],
)
def test_crops_options_are_checked(large: Path, options: str, message: str) -> None:
    if not options:
        assert crops.parse(f"{large}?") == crops.parse(str(large)) == (large, crops.Options())
        return
    with pytest.raises(ValueError, match=f"crops:.*{message}"):
        load_data(f"crops:{large}?{options}")


def test_crops_without_photographs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder: give crops:PATH"):
        load_data(f"crops:{tmp_path / 'nowhere'}?seed=1")
    with pytest.raises(ValueError, match="holds 0 images"):
        load_data(f"crops:{tmp_path}")


# Photographs of scikit-image in larger sizes


def test_photos_of_64_are_as_they_were() -> None:
    photos = load_data("photos", size=64)
    assert (len(photos.train), len(photos.heldout), photos.source["reductions"]) == (
        654,
        37,
        [3, 4],
    )
    # Frozen, as those of 32 are in test_data.py.
    assert (
        photos.source["train_sha256"]
        == "b218bede10ef819880f25b3ed1ed39112c90e3fd11ae4fd9a28ded1911c59f57"
    )
    assert (
        photos.source["heldout_sha256"]
        == "9465129e05e05272197727b75a13d7803c5648f0e089499b26749389114eae1a"
    )


def test_photos_of_128_are_reduced_less() -> None:
    photos = load_data("photos", size=128)
    assert (
        photos.label
        == "photos128: 6 of 9 scikit-image colour photographs, 1614 train / 99 held-out 128x128 "
        "patches"
    )
    assert photos.source["reductions"] == [1, 2]
    cat = images_module.box_reduce(_read_photo("chelsea.png", HELDOUT_PHOTOS["chelsea.png"]), 2)[
        :128, :128
    ].transpose(2, 0, 1)
    assert any(np.array_equal(patch, cat) for patch in photos.heldout.numpy())


# Images of no kind


def test_constant_and_uniform_images() -> None:
    grey = data.constant_images(2, (3, 4, 5))
    # the zero of images in [-1, 1], up to the half byte that there is not
    assert grey.dtype == torch.uint8 and grey.shape == (2, 3, 4, 5)
    assert (grey == 128).all() and abs(2 * int(grey[0, 0, 0, 0]) / 255 - 1) < 1 / 255
    assert (data.constant_images(1, (1, 2, 2), 255) == 255).all()
    noise = data.uniform_images(50, (3, 32, 32), seed=1)
    assert (
        noise.shape == (50, 3, 32, 32)
        and noise.dtype == torch.uint8
        and torch.equal(noise, data.uniform_images(50, (3, 32, 32), seed=1))
    )
    counts = torch.bincount(noise.flatten().int(), minlength=256).float()
    assert ((counts - 600).abs() < 150).all() and not torch.equal(
        noise, data.uniform_images(50, (3, 32, 32), seed=2)
    )
    for call in (
        lambda: data.constant_images(0, (3, 4, 4)),
        lambda: data.uniform_images(1, (3, 0, 4), 0),
        lambda: data.constant_images(1, (4, 4)),
        lambda: data.constant_images(1, (3, 4, 4), 256),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


# Real data, where there is some


@pytest.mark.skipif(
    not (REAL / "svhn" / "train_32x32.mat").is_file(), reason="PCDM_DATA names no SVHN"
)
def test_real_svhn() -> None:
    array, label = load_svhn(split="train", limit=600)
    assert label == "SVHN (first 600 of 73257 train images)" and array.shape == (600, 3, 32, 32)
    assert 100 < array.float().mean() < 125
    rows = (array[:, :, 1:].float() - array[:, :, :-1].float()).abs().mean()
    assert rows < 6  # neighbouring pixels are alike: rows, columns and channels are told apart


@pytest.mark.skipif(not (REAL / "kodak").is_dir(), reason="PCDM_DATA names no Kodak photographs")
def test_real_kodak() -> None:
    found = load_data(f"crops:{REAL / 'kodak'}?count=100", size=64)
    assert found.label.startswith(
        "crops of kodak: 15 train / 1 held-out photographs, 100 random (seed 0) train / 77 "
        "held-out 64x64 crops"
    )
    assert found.train.shape == (100, 3, 64, 64)


def test_a_set_says_what_it_is_asked_for_by(tmp_path):
    """`asked` loads the same images again, options included: what the card of a shipped model
    repeats."""
    generator = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(generator.integers(0, 256, (96, 80, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    for name in (f"folder:{tmp_path}", f"crops:{tmp_path}?count=5&margin=4&seed=3"):
        first = data.load_data(name)
        again = data.load_data(first.asked)
        assert (
            first.of_a_path
            and again.source == first.source
            and torch.equal(again.train, first.train)
        )
    photos = data.load_data("photos")
    assert not photos.of_a_path and photos.asked == "photos"
