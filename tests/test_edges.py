"""Nothing lost, nothing leaked, nothing found out last: what is written where, what is looked for
where, and what is refused before the work."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pcdm_lib import outputs, records
from pcdm_lib.__main__ import main
from pcdm_lib.data import paths, sets
from pcdm_lib.data.files import name_files, read_image
from pcdm_lib.data.found import find_images
from pcdm_lib.data.images import ImageData, read_rgb
from pcdm_lib.experiments import experiment, suite
from pcdm_lib.models import checkpoints, kept, presets
from pcdm_lib.training.trainer import Trainer


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


@pytest.mark.parametrize("what", ("file", "folder", "link"))
def test_a_folder_is_replaced_only_where_it_is_ours(here: Path, what: str) -> None:
    """One file of the user's own, also a link or a folder of a name that we use, keeps it."""
    Path("model").mkdir()
    Path("model/config.json").write_text("old")
    mine = Path("model/notes.txt") if what == "file" else Path("model/a.safetensors")
    if what == "file":
        mine.write_text("mine")
    elif what == "folder":
        mine.mkdir()
    else:
        os.symlink("config.json", mine)
    ours = ("config.json", "*.safetensors")
    with pytest.raises(FileExistsError, match=f"holds {mine.name}.*give another name"):
        with outputs.whole_folder("model", ours):
            pytest.fail("the work was begun")
    assert os.path.lexists(mine) and not outputs.remove_folder("model", ours)
    assert os.path.lexists(mine) and os.listdir("model") == [mine.name]


def test_a_folder_of_ours_is_replaced_whole_or_not_at_all(here: Path) -> None:
    with outputs.whole_folder("a/model", ["*.txt"]) as folder:
        records.write_bytes(folder / "old.txt", b"old")
    with pytest.raises(OSError, match="^a/model was not written, the disk is full"):
        with outputs.whole_folder("a/model", ["*.txt"]) as folder:
            records.write_bytes(folder / "new.txt", b"new")
            raise OSError(errno.ENOSPC, "full")
    assert os.listdir("a") == ["model"] and os.listdir("a/model") == ["old.txt"]
    with outputs.whole_folder("a/model", ["*.txt"]) as folder:
        records.write_bytes(folder / "new.txt", b"new")
    assert os.listdir("a") == ["model"] and os.listdir("a/model") == ["new.txt"]


def test_what_came_into_a_folder_meanwhile_is_kept(here: Path) -> None:
    """Another process made the same folder first, or the user put something into it."""
    with pytest.raises(FileExistsError), outputs.whole_folder("model", ["*.txt"]):
        Path("model").mkdir()
        Path("model/mine").write_text("mine")
    assert os.listdir() == ["model"] and os.listdir("model") == ["mine"]


def test_a_line_is_appended_whole_or_not_at_all(
    here: Path,
) -> None:
    outputs.append_line("log", "one")
    outputs.append_line("log", "two")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12, limit[1]))  # as on a full disk
        with pytest.raises(OSError, match="log was not written"):
            outputs.append_line("log", "three and more")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert Path("log").read_text() == "one\ntwo\n"
    os.mkfifo("pipe")
    with pytest.raises(ValueError, match="pipe"):
        outputs.append_line("pipe", "four")


def test_only_what_a_killed_process_left_is_swept_away(here: Path) -> None:
    left, others = (
        (".step-00000010.0123456789abcdef",),
        (".step-mine", "step-00000010", ".x.abcdefgh"),
    )
    for name in (*left, *others):
        Path(name).mkdir()
    outputs.sweep(".", r"step-\d+")
    assert sorted(os.listdir()) == sorted(others)


@pytest.mark.parametrize("force", (False, True))
def test_samples_of_the_user_are_not_replaced(
    here: Path, force: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Before the model is opened; a pipe of that name not even by force."""
    monkeypatch.setattr("pcdm_lib.models.pretrained.open_model", lambda *_: pytest.fail("opened"))
    Path("s").mkdir()
    if force:
        os.mkfifo("s/sample-000-base.png")
    else:
        Path("s/sample-000-base.png").write_text("mine")
    words = ["sample", "photos32-vdm", "-o", "s", *(["--force"] if force else [])]
    assert main(words) == 2
    assert ("pipe" if force else "--force") in capsys.readouterr().err


@pytest.mark.parametrize("inside", ("card.json", "notes.txt"))
def test_a_model_is_replaced_by_force_and_another_folder_never(
    here: Path, inside: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("pcdm_lib.data.sets.load_data", lambda *_, **__: pytest.fail("loaded"))
    Path("w/mine").mkdir(parents=True)
    Path("w/mine", inside).write_text("mine")
    words = ["ship", "runs/a", "mine", "--weights-root", "w"]
    words += ["--force"] if inside == "notes.txt" else []
    assert main(words) == 2
    assert ("--force" if inside == "card.json" else "notes.txt") in capsys.readouterr().err
    assert Path("w/mine", inside).read_text() == "mine"


def test_a_kept_model_with_other_files_is_refused_before_the_work(here: Path) -> None:
    Path("a.model").mkdir()
    records.write_json("a.model/config.json", {"kept": kept.FORMAT})
    kept.check_place(Path("a.model"), force=True)
    Path("a.model/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.txt too"):
        kept.check_place(Path("a.model"), force=True)


@pytest.mark.parametrize("name", ("wavelet.ipynb", "wavelet.done.json", "tables.ipynb"))
def test_tables_replace_no_notebook_of_the_user(
    here: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("executed"))
    Path("t").mkdir()
    Path("t", name).write_text('{"cells": []}')
    with pytest.raises(FileExistsError, match="no part of the tables"):
        suite.run(1.0, only=["wavelet"], folder="t")
    assert os.listdir("t") == [name]


@pytest.mark.parametrize("module", ("learning", "presets", "__main__"))
def test_benchmarks_need_force_too(here: Path, module: str, capsys: pytest.CaptureFixture) -> None:
    Path("r.json").write_text("mine")
    assert import_module(f"benchmarks.{module}").main(["--out", "r.json"]) == 2
    assert "--force" in capsys.readouterr().err
    assert Path("r.json").read_text() == "mine"


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


def test_compress_says_what_orientation_is_not_kept(here: Path, capsys: Any) -> None:
    """Pixels come back as they lie in the file; a viewer had shown them turned."""
    exif = Image.Exif()
    exif[0x112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (9, 17, 3), np.uint8)
    Image.fromarray(pixels).save("turned.png", exif=exif)
    Image.fromarray(pixels).save("upright.png")
    for names, said in (
        (["upright.png"], ""),
        (["turned.png", "upright.png"], "note: 1 image carries an EXIF orientation, which is not"),
    ):
        assert main(["compress", *names, "-o", "a.pcdm", "--force", "--quiet"]) == 0
        errors = capsys.readouterr().err
        assert errors.startswith(said) and errors.count("\n") == bool(said)
    assert main(["decompress", "a.pcdm", "-o", "out", "--quiet"]) == 0
    assert np.array_equal(read_image(Path("out/turned.png")), pixels)


def test_sampling_says_that_a_direct_cascade_has_no_steps(here: Path, capsys: Any) -> None:
    words = ["sample", "photos-direct", "-o", "s", "--count", "1", "--steps", "7"]
    assert main(words) == 0
    errors = capsys.readouterr().err
    assert "note: --steps changes nothing: photos-direct is a direct cascade" in errors
    assert "100%" in errors and "7/7" in errors  # 64x64 images have 6 levels and a base


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


# ---------------------------------------------------------------- a start that failed


def trainer(folder: str = "run", seed: int = 0, resume: bool = False, **changes: str) -> Trainer:
    """A tiny one."""
    config = presets.preset("tiny", image_shape=(3, 8, 8)).override({"batch_size": "2", **changes})
    images = torch.arange(4 * 3 * 64).reshape(4, 3, 8, 8).to(torch.uint8)
    return Trainer(config, images, folder, seed=seed, resume=resume)


def fails_in_the_first_step() -> None:
    begun = trainer()
    begun._gradients = lambda: (_ for _ in ()).throw(MemoryError)
    with pytest.raises(MemoryError):
        begun.run(steps=2, progress=False)


def leaves_a_first_checkpoint() -> None:
    trainer().save()


def is_killed_before_the_first_checkpoint() -> None:
    trainer()
    outputs.append_line("run/log.jsonl", '{"step": 10}')
    Path("run/checkpoints/.step-00000010.0123456789abcdef").mkdir(parents=True)


@pytest.mark.parametrize("resume", (False, True))
@pytest.mark.parametrize(
    "start",
    (
        trainer,  # whose budget was refused
        fails_in_the_first_step,
        leaves_a_first_checkpoint,
        is_killed_before_the_first_checkpoint,
    ),
)
def test_a_failed_start_blocks_nothing(here: Path, start: Callable[[], Any], resume: bool) -> None:
    """The corrected command begins anew, says so, and leaves the user's own files."""
    start()
    Path("run/notes.txt").write_text("mine")
    Path("run/checkpoints/step-00000000").mkdir(parents=True, exist_ok=True)
    Path("run/checkpoints/step-00000000/mine.txt").write_text("mine")
    anew = trainer(seed=1, resume=resume, learning_rate="0.01")
    assert anew.note.startswith(
        "run held a start that finished no step (preset tiny, system wavelet, seed 0): begun anew"
    )
    anew.run(steps=1, progress=False)
    assert records.read_json("run/config.json")["seed"] == 1
    assert [row["step"] for row in checkpoints.read_log("run")] == [1]
    assert checkpoints.newest_checkpoint("run").name == "step-00000001"
    assert os.listdir("run/checkpoints/step-00000000") == ["mine.txt"]
    assert Path("run/notes.txt").read_text() == "mine"
    if start is is_killed_before_the_first_checkpoint:
        assert (
            Path("run/log.1.jsonl").read_text() == '{"step": 10}\n' and "log.1.jsonl" in anew.note
        )
    with pytest.raises(FileExistsError, match="holds a run already"):
        trainer(seed=2)
    assert trainer(seed=1, resume=True, learning_rate="0.01").step == 1


def test_a_start_that_goes_on_is_the_same(here: Path) -> None:
    """The same settings and --resume: nothing was wrong, and nothing is said."""
    trainer()
    assert trainer(resume=True).note == ""


def test_a_start_of_another_process_is_left(here: Path) -> None:
    begun = trainer()
    with outputs.lock("run"), pytest.raises(BlockingIOError, match="another process"):
        trainer(seed=1)
    trainer(seed=1)  # it has the folder now
    with pytest.raises(checkpoints.CheckpointMismatch, match="seed: expected 0, found 1"):
        begun.run(steps=1, progress=False)


@pytest.mark.parametrize("resume", (False, True))
@pytest.mark.parametrize(
    "name", ("config.json", "log.jsonl", "checkpoints/a", "results.json", "scores.npz")
)
def test_a_folder_of_the_user_is_no_run(here: Path, name: str, resume: bool) -> None:
    """What a run would write into, trim or replace."""
    Path("run", name).parent.mkdir(parents=True)
    Path("run", name).write_text('{"format": 1}')
    with pytest.raises(FileExistsError, match=f"holds {name[:6]}.*give another folder"):
        trainer(resume=resume)
    assert Path("run", name).read_text() == '{"format": 1}'


def test_figures_without_their_checkpoints_are_kept(here: Path) -> None:
    trainer()
    Path("run/results.json").write_text("{}")
    with pytest.raises(FileExistsError, match="whose checkpoints are gone"):
        trainer()


@pytest.mark.parametrize("what", ("file", "pipe", "log pipe", "run"))
def test_train_looks_at_its_folder_before_the_data(
    here: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("pcdm_lib.data.sets.load_data", lambda *_, **__: pytest.fail("loaded"))
    if what == "file":
        Path("run").write_text("mine")
    elif what == "pipe":
        os.mkfifo("run")
    elif what == "log pipe":
        Path("run").mkdir()
        os.mkfifo("run/log.jsonl")
    else:
        Path("run/checkpoints/step-00000002").mkdir(parents=True)
    assert main(["train", "run", "--steps", "1", "--preset", "tiny"]) == 2
    assert "give" in capsys.readouterr().err


# ---------------------------------------------------------------- what a path means


def cifar(folder: str) -> None:
    """A CIFAR-10 of few images."""
    Path(folder, "cifar-10-batches-bin").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows = generator.integers(0, 256, (4, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        rows.tofile(f"{folder}/cifar-10-batches-bin/{name}.bin")


@pytest.mark.parametrize("given", (None, "elsewhere", "./elsewhere", "absolute"))
@pytest.mark.parametrize(
    "dataset", ("auto", "folder:own", "imagenet128:inet", "crops:own?margin=0")
)
def test_a_path_means_the_same_everywhere(
    here: Path, dataset: str, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `train`, and in a notebook that `tables` runs in another folder."""
    cifar("data" if given is None else "elsewhere")
    pictures("own", 4)
    pictures("inet/train", 2, side=140)
    pictures("inet/val", 2, seed=2, side=140)
    monkeypatch.delenv("PCDM_DATA", raising=False)
    if given is not None:
        folder = str(here / "elsewhere") if given == "absolute" else given
        monkeypatch.setenv("PCDM_DATA", folder)
    label = sets.load_data(dataset).label
    assert dataset != "auto" or label.startswith("CIFAR-10")
    seen = []

    def execute(_: Path, out: Path, parameters: dict[str, Any], cwd: Path, **__: Any) -> None:
        """What the notebook's kernel does."""
        monkeypatch.chdir(cwd)
        root = experiment.data_root()
        seen.append(sets.load_data(parameters.get("dataset", "auto"), root=root).label)
        assert Path(parameters["output_dir"]).is_absolute()
        monkeypatch.chdir(here)
        raise RuntimeError("enough")

    monkeypatch.setattr("papermill.execute_notebook", execute)
    before = os.environ.get("PCDM_DATA")
    part = "imagenet128" if dataset.startswith("imagenet128") else "wavelet"
    _, steps = suite.plan(1.0, dataset=dataset, only=[part])
    assert suite._execute(Path("x"), steps[0].out, steps[0].parameters, False).endswith("enough")
    assert seen == [label] and os.environ.get("PCDM_DATA") == before
    assert steps[0].out.is_relative_to(here.resolve() / "runs" / "tables")


def test_a_notebook_in_its_own_folder_counts_from_the_checkout(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JupyterLab starts its kernel; elsewhere, and in the shell, the current folder counts."""
    monkeypatch.delenv("PCDM_DATA", raising=False)
    for kernel in (False, True):
        monkeypatch.setattr(paths, "_in_kernel", lambda kernel=kernel: kernel)
        monkeypatch.chdir(here)
        assert paths.located("runs/a") == Path("runs/a")
        for name in paths.FOLDERS:
            monkeypatch.chdir(paths.home() / name)
            counted = paths.home() if kernel else Path()
            assert paths.located("runs/a") == counted / "runs/a"
            assert paths.data_folder() == counted / "data"
            assert paths.absolute("folder:a") == f"folder:{(counted / 'a').absolute()}"
            assert paths.located("/runs/a") == Path("/runs/a")


@pytest.mark.parametrize("module", ("learning", "__main__"))
def test_benchmarks_find_the_data_of_train(
    here: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar("data")
    monkeypatch.delenv("PCDM_DATA", raising=False)
    found = []

    def load(*words: Any, **options: Any) -> None:
        found.append(sets.load_data(*words, **options).label)
        raise ValueError("enough")

    monkeypatch.setattr("pcdm_lib.data.load_data", load)
    assert import_module(f"benchmarks.{module}").main([]) == 2
    assert found == [sets.load_data().label] and found[0].startswith("CIFAR-10")
