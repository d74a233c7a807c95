"""Nothing lost, nothing leaked, nothing found out last: what is written where, what is looked for
where, and what is refused before the work."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from pcdm_lib import outputs, records


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
