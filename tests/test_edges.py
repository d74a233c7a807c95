"""Nothing lost, nothing leaked, nothing found out last: what is written where, what is looked for
where, and what is refused before the work."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pcdm_lib import outputs, records
from pcdm_lib.data import sets
from pcdm_lib.data.files import name_files, read_image
from pcdm_lib.data.found import find_images
from pcdm_lib.data.images import ImageData, read_rgb


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize("force", (False, True))
@pytest.mark.parametrize("way", ("same", "dots", "link", "hard link", "folder link"))
def test_an_output_that_is_an_input_is_refused(here: Path, way: str, force: bool) -> None:
    """By no name, and `force` does not help."""
    Path("in").mkdir()
    source = Path("in/a.png")
    source.write_bytes(b"pixels")
    out = {"same": "in/a.png", "dots": "in/../in/a.png", "folder link": "also/a.png"}.get(way, "b")
    if way == "link":
        os.symlink("in/a.png", "b")
    elif way == "hard link":
        os.link("in/a.png", "b")
    elif way == "folder link":
        os.symlink("in", "also")
    with pytest.raises(ValueError, match="also an input"):
        outputs.check_output(out, inputs=["in/none.png", source], force=force)
    assert source.read_bytes() == b"pixels"


def test_an_existing_file_needs_force(here: Path) -> None:
    Path("a").write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        outputs.check_output("a")
    assert outputs.check_output("a", force=True) == here.resolve() / "a"
    assert Path("a").read_text() == "mine"


@pytest.mark.parametrize("what", ("pipe", "socket", "folder", "dangling", "loop", "device"))
def test_what_is_no_file_is_refused_and_left(here: Path, what: str) -> None:
    """Before the work, and by the writer too."""
    path = Path("out")
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path = Path(os.devnull)  # seen through a link of one's own, so that it cannot be replaced
        os.symlink(path, "out")
        path = Path("out")
    else:
        os.symlink("nowhere" if what == "dangling" else "out", path)
    before = os.lstat(path)
    for call in (
        lambda: outputs.check_output(path, force=True),
        lambda: records.write_bytes(path, b"new"),
    ):
        with pytest.raises((ValueError, OSError), match="(?i)give|remove"):
            call()
    after = os.lstat(path)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert os.listdir() == ["out"]


@pytest.mark.parametrize("name", ("", "a\0b", "n" * 256, "file/inner", "deep/file/inner/x", "."))
def test_names_that_cannot_be_written_are_refused(here: Path, name: str) -> None:
    Path("file").write_text("")
    Path("deep").mkdir()
    Path("deep/file").write_text("")
    with pytest.raises((ValueError, OSError)):
        outputs.check_output(name, force=True)
    assert sorted(os.listdir()) == ["deep", "file"]


def test_a_link_is_followed_and_stays_one(here: Path) -> None:
    Path("target").write_text("old")
    os.symlink("target", "link")
    records.write_bytes("link", b"new")
    assert os.readlink("link") == "target"
    assert Path("target").read_text() == "new"


def test_a_replaced_file_keeps_its_mode_and_a_new_one_has_that_of_the_umask(here: Path) -> None:
    Path("secret").write_text("old")
    os.chmod("secret", 0o600)
    records.write_bytes("secret", b"new")
    records.write_bytes("plain", b"new")
    Path("ordinary").write_text("")
    assert os.stat("secret").st_mode & 0o777 == 0o600
    assert os.stat("plain").st_mode == os.stat("ordinary").st_mode


@pytest.mark.parametrize("number", (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
def test_a_full_disk_leaves_the_old_file_and_says_so(here: Path, number: int) -> None:
    Path("a").write_text("old")
    with pytest.raises(OSError, match="^a was not written.*again$") as caught:
        with outputs.whole_file("a") as file:
            file.write(b"half")
            raise OSError(number, os.strerror(number))
    assert caught.value.errno == number
    assert Path("a").read_text() == "old"
    assert os.listdir() == ["a"]


def test_a_link_put_in_the_way_while_writing_is_not_replaced(here: Path) -> None:
    Path("theirs").write_text("theirs")
    with pytest.raises(ValueError, match="not replaced"), outputs.whole_file("a") as file:
        file.write(b"new")
        os.symlink("theirs", "a")
    assert Path("theirs").read_text() == "theirs"
    assert sorted(os.listdir()) == ["a", "theirs"]


def test_long_names_can_be_written(here: Path) -> None:
    """The temporary name is not longer than the file's own may be."""
    for name in ("a" * 250, "é" * 125):
        records.write_bytes(name, b"x")
    assert len(os.listdir()) == 2


@pytest.mark.parametrize("what", ("file", "pipe", "dangling"))
def test_an_output_folder_is_a_folder(here: Path, what: str) -> None:
    if what == "file":
        Path("out").write_text("mine")
    elif what == "pipe":
        os.mkfifo("out")
    else:
        os.symlink("nowhere", "out")
    for name in ("out", "out/inner"):
        with pytest.raises((OSError, ValueError)):
            outputs.check_folder(name)
    assert outputs.check_folder("new/inner") == here.resolve() / "new/inner"
    assert os.listdir() == ["out"]


# ---------------------------------------------------------------- where images are looked for


def pictures(folder: str, count: int = 10, seed: int = 1, side: int = 40) -> None:
    """PNG files of noise, no two alike."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for i in range(count):
        pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{folder}/img{i}.png")


def leaked(data: ImageData) -> int:
    """How many held-out images are among those trained on."""
    trained = {image.numpy().tobytes() for image in data.train}
    return sum(image.numpy().tobytes() in trained for image in data.heldout)


@pytest.mark.parametrize(
    "inner",
    (
        ".ipynb_checkpoints",
        "@eaDir",
        "@eaDir/img0.png",
        ".Trash-1000/files",
        "__MACOSX/a",
        "#recycle",
        "$RECYCLE.BIN",
        "sub/.git/deep",
        "lost+found",
    ),
)
@pytest.mark.parametrize("kind", ("folder:a", "crops:a?train=grid&margin=0"))
def test_hidden_folders_are_skipped_and_counted(here: Path, inner: str, kind: str) -> None:
    pictures("a")
    clean = sets.load_data(kind)
    pictures(f"a/{inner}")
    data = sets.load_data(kind)
    assert data.source["train_sha256"] == clean.source["train_sha256"]
    assert data.source["heldout_sha256"] == clean.source["heldout_sha256"]
    assert data.label == f"{clean.label}; left out: 1 hidden folder"


@pytest.mark.parametrize("kind", ("folder:a", "crops:a?train=grid&margin=0"))
@pytest.mark.parametrize("way", ("copies", "recoded", "links", "suffix"))
def test_repeated_images_stay_on_one_side(here: Path, kind: str, way: str) -> None:
    """Whatever name, format or link an image has a second time."""
    pictures("a")
    clean = sets.load_data(kind)
    Path("a/z").mkdir()
    for i in range(10):
        if way == "copies":
            shutil.copy(f"a/img{i}.png", f"a/z/{i}.png")
        elif way == "recoded":
            Image.open(f"a/img{i}.png").save(f"a/z/{i}.webp", lossless=True)
        elif way == "links":
            os.symlink(f"../img{i}.png", f"a/z/{i}.png")
        else:
            shutil.copy(f"a/img{i}.png", f"a/img{i}-copy.PNG")
    data = sets.load_data(kind)
    assert leaked(data) == 0
    assert (len(data.train), len(data.heldout)) == (len(clean.train), len(clean.heldout))
    assert data.label.endswith("left out: 10 repeated images")


def test_imagenet128_holds_out_no_image_that_it_trains_on(here: Path) -> None:
    """In whatever folder and format; what was found is found again, and after a change anew."""
    pictures("a/train/x", 3, side=140)
    pictures("a/val", 2, seed=2, side=140)
    clean = sets.load_data("imagenet128:a")
    assert (len(clean.heldout), clean.source["repeats"]) == (2, 0) and "left out" not in clean.label
    Image.open("a/train/x/img1.png").save("a/val/again.webp", lossless=True)
    for _ in range(2):
        data = sets.load_data("imagenet128:a")
        assert leaked(data) == 0 and data.source["repeats"] == 1
        assert data.source["heldout_sha256"] == clean.source["heldout_sha256"]
        assert data.label.endswith("2 validation images; val/ left out: 1 image of train/")
    Path("a/imagenet128-repeats.json").write_text('{"repeats": [7]}')
    assert leaked(sets.load_data("imagenet128:a")) == 0
    for i in range(2):
        os.remove(f"a/val/img{i}.png")
    with pytest.raises(ValueError, match="nothing is left to hold out"):
        sets.load_data("imagenet128:a")


def test_imagenet128_in_a_folder_for_reading_only(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoded images are there; what is kept beside them cannot be."""
    pictures("a/train", 3, side=140)
    pictures("a/val", 2, seed=2, side=140)
    shutil.copy("a/train/img1.png", "a/val/again.png")
    first = sets.load_data("imagenet128:a")
    os.remove("a/imagenet128-repeats.json")

    def full(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr("pcdm_lib.records.write_json", full)
    again = sets.load_data("imagenet128:a")
    assert again.label == first.label and leaked(again) == 0


def test_linked_folders_are_followed_once_and_loops_end(here: Path) -> None:
    pictures("elsewhere/x", 3)
    pictures("a/own", 2, seed=2)
    os.symlink("../elsewhere", "a/linked")
    os.symlink("../elsewhere/x", "a/again")  # read first by this name: sorted
    os.symlink("..", "a/up")
    os.symlink("own", "a/twice")
    os.symlink("../a", "a/loop")
    os.symlink("../a", "elsewhere/back")
    found = find_images("a")
    assert found.files == sorted(found.files)
    assert [f for f in found.files if f.startswith("own/")] == ["own/img0.png", "own/img1.png"]
    assert len(found.files) == 5
    assert found.left_out == {"links to folders that are read anyway": 4}


def test_what_is_no_image_is_left_out_with_its_count(here: Path) -> None:
    pictures("a", 2)
    os.mkfifo("a/pipe.png")
    os.symlink("nowhere", "a/dangling.png")
    Path("a/._img0.png").write_bytes(b"a Mac's, which nobody misses")
    shutil.copy("a/img0.png", "a/.old.png")
    data = sets.load_data("folder:a")
    assert data.label.endswith(
        "; left out: 1 hidden file, 1 link that leads nowhere, 1 pipe or device"
    )


def test_photographs_are_turned_upright_and_the_label_says_so(here: Path) -> None:
    rows = np.mgrid[:96, :64][0]
    Path("side").mkdir()
    for i in range(3):
        upright = np.stack([rows * 2 + i] * 3, -1).astype(np.uint8)
        exif = Image.Exif()
        exif[0x112] = 6
        Image.fromarray(np.rot90(upright).copy()).save(f"side/{i}.png", exif=exif)
    data = sets.load_data("folder:side")
    image = data.train[0].float()
    assert (image[0, 1:] - image[0, :-1]).mean() == 2
    assert (image[0, :, 1:] - image[0, :, :-1]).mean() == 0
    assert data.label.endswith("; 3 images turned upright")


def test_grey_images_are_named_in_the_label(here: Path) -> None:
    pictures("a", 4)
    Image.open("a/img0.png").convert("L").save("a/img0.png")
    assert sets.load_data("folder:a").label.endswith("; 1 grey image as three equal channels")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ("L", "P", "RGB"))
def test_an_image_read_in_bands_is_the_image(
    here: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, mode: str
) -> None:
    """Turned as Pillow turns it."""
    monkeypatch.setattr("pcdm_lib.data.images._BAND", 40)
    pixels = np.random.default_rng(orientation).integers(0, 256, (9, 17, 1), np.uint8)
    exif = Image.Exif()
    exif[0x112] = orientation
    whole = Image.fromarray(np.repeat(pixels, 3, 2)).convert(mode)
    whole.save("a.png", exif=exif)
    with Image.open("a.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        stored = np.asarray(image.convert("L" if mode == "L" else "RGB"))
    np.testing.assert_array_equal(read_rgb(Path("a.png")), shown)
    np.testing.assert_array_equal(read_image(Path("a.png")), stored)


@pytest.mark.parametrize("read", (read_image, read_rgb, sets.read_square))
def test_one_wrong_bit_in_the_pixels_of_a_png_is_found(here: Path, read: Any) -> None:
    """Pillow skips the checksum there."""
    pictures("a", 1)
    whole = Path("a/img0.png").read_bytes()
    read(Path("a/img0.png"))
    for at in (whole.index(b"IDAT") + 100, len(whole) - 20):
        Path("b.png").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="b.png cannot be read.*checksum"):
            read(Path("b.png"))


@pytest.mark.parametrize("what", ("pipe", "socket", "device"))
def test_inputs_that_are_no_files_are_refused_at_once(here: Path, what: str) -> None:
    """A pipe without a writer would be waited for."""
    if what == "pipe":
        os.mkfifo("in.png")
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind("in.png")
    else:
        os.symlink(os.devnull, "in.png")
    with pytest.raises(ValueError, match="give a file"):
        name_files([Path("in.png")])
    with pytest.raises(ValueError, match="give a file"):
        sets.read_square("in.png")
