"""The one way to write: every file of this program is made, replaced or removed here.

Before the work, `check_output` and `check_folder` refuse what cannot be written or must not be
replaced. `whole_file` and `whole_folder` write what is whole or absent; `append_line` makes a log
longer. A test looks through the sources that nothing else opens a file for writing.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no flock; there two processes in one folder are not told apart
    fcntl = None  # type: ignore[assignment]

_NAME_BYTES = 255  # of one name on Linux, macOS and Windows
_KINDS = (
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)
FULL = {  # the errors of a disk that takes no more, in words
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota of disk space is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
}


def kind_of(mode: int) -> str | None:
    """What a path is that is neither a file nor a folder ("a pipe", ...), from its `st_mode`."""
    return next((name for test, name in _KINDS if test(mode)), None)


def _status(path: str | os.PathLike[str]) -> os.stat_result | None:
    """The status of what a path names, links followed; None where there is nothing."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise OSError(f"{path} cannot be looked at ({error.strerror}): give another name") from None


def real_output(path: Path | str) -> Path:
    """Where a file of that name is written: links are followed, so that a link stays one.

    Raises:
        IsADirectoryError: for a folder.
        ValueError: for a device, a pipe, a socket, a link that leads to no file, or a name that no
            disk takes.
    """
    text = os.fspath(path)
    name = os.path.basename(text)
    if "\0" in text or not text:
        raise ValueError(f"{text!r} is no name of a file: give another one")
    if len(os.fsencode(name)) > _NAME_BYTES:
        raise ValueError(f"{name[:40]}... has more than {_NAME_BYTES} bytes: give a shorter name")
    found = _status(text)
    if found is None:
        if os.path.islink(text):
            raise ValueError(
                f"{text} is a link to {os.readlink(text)}, where there is no file: remove the "
                f"link, or give the file's own name"
            )
        if not name or name in (".", ".."):
            raise IsADirectoryError(f"{text} is a folder: give the name of a file")
        return Path(os.path.realpath(text))
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{text} is a folder: give the name of a file")
    if not stat.S_ISREG(found.st_mode):
        kind = kind_of(found.st_mode) or "no ordinary file"
        raise ValueError(f"{text} is {kind}, which is not replaced: give the name of a file")
    return Path(os.path.realpath(text))


def _check_parent(path: Path) -> None:
    """That the folder of a file can be made and written."""
    above = path.parent
    while (found := _status(above)) is None and above != above.parent:
        if os.path.islink(above):
            raise ValueError(f"{above} is a link that leads nowhere: remove it, or mend it")
        above = above.parent
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{above} is no folder, so {path} cannot be made: give another")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{above} cannot be written: give a name in another folder")


def check_output(path: Path | str, inputs: Iterable[Path | str] = (), force: bool = False) -> Path:
    """Refuse an output file before the work; returns where it will be written, links followed.

    Args:
        path: the file as the user names it.
        inputs: files that are read. The output must be none of them, by no name: not by a link, a
            hard link or another spelling. `force` does not help here.
        force: whether an existing file may be replaced.
    Raises:
        FileExistsError: where there is a file, without `force`.
        ValueError, IsADirectoryError, NotADirectoryError, PermissionError: as `real_output`, for an
            input, and where its folder cannot be made or written. Nothing was written.

    Example:
        >>> check_output("no/such/folder/figures.json").name
        'figures.json'
    """
    real = real_output(path)
    found = _status(real)
    if found is not None:
        for given in inputs:
            other = _status(given)
            if other is not None and os.path.samestat(found, other):
                raise ValueError(
                    f"{path} is also an input ({given}): give the output a name of its own"
                )
        if not force:
            raise FileExistsError(
                f"{path} is there already: give another name, or --force to replace it"
            )
    _check_parent(Path(os.path.abspath(path)) if found is None else real)
    return real


def check_folder(path: Path | str) -> Path:
    """Refuse an output folder before the work; returns it, links followed. It is not made.

    Raises:
        NotADirectoryError: where something else has the name.
        PermissionError: where it cannot be made or written.
    """
    text = os.fspath(path)
    if "\0" in text or not text:
        raise ValueError(f"{text!r} is no name of a folder: give another one")
    found = _status(text)
    if (found is None and os.path.islink(text)) or (
        found is not None and not stat.S_ISDIR(found.st_mode)
    ):
        raise NotADirectoryError(f"{text} is no folder: give the name of a folder")
    _check_parent(Path(os.path.abspath(text)) / "file")
    return Path(os.path.realpath(text))


@contextlib.contextmanager
def whole_file(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write that is whole or absent.

    The block writes under a hidden temporary name in the same folder (`file.name`). At its end the
    file is flushed to disk and renamed. An error in the block removes it and leaves an older file
    of that name as it was. Missing folders are made; a link is followed, never replaced.

    Raises:
        OSError: where the disk is full, in one line; and as `real_output`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_file(f"{folder}/a.txt") as file:
        ...         _ = file.write(b"all")
        ...     Path(folder, "a.txt").read_text()
        'all'
    """
    real = real_output(path)
    work = _beside(real)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        with open(work, "xb") as file:  # a new file has the mode that the umask allows
            yield file
            file.flush()
            os.fsync(file.fileno())
        _take_place(work, real)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the exception that led here says more
            os.unlink(work)
        if isinstance(error, OSError) and error.errno in FULL:
            raise disk_full(path, error) from error
        raise


def _beside(real: Path) -> Path:
    """A hidden name that nobody else has, in the same folder."""
    return real.with_name(f".{real.name[:40]}.{secrets.token_hex(8)}")


def _take_place(work: Path, real: Path) -> None:
    """Rename, unless the name was taken meanwhile by something that must not be replaced; a file
    that is replaced hands on its mode."""
    with contextlib.suppress(FileNotFoundError):
        old = os.lstat(real)
        if not stat.S_ISREG(old.st_mode):
            raise ValueError(f"{real} is no ordinary file any more, so it was not replaced")
        os.chmod(work, stat.S_IMODE(old.st_mode))
    os.replace(work, real)


def append_line(path: Path | str, line: str) -> None:
    """Make a text file longer by one line; where the disk is full it stays as it was.

    Args:
        path: the file, made where it is missing.
        line: without its end.
    Raises:
        OSError: where the disk is full, in one line; and as `real_output`.
    """
    with open(real_output(path), "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        left = memoryview(f"{line}\n".encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(before)
            if error.errno in FULL:
                raise disk_full(path, error) from error
            raise


def strangers(folder: Path | str, ours: Sequence[str]) -> list[str]:
    """What a folder holds beside this program's own files; nothing where it is not there.

    Args:
        folder: where to look.
        ours: names of files, `*` in them for anything. A link or a folder of such a name is none.
    Returns:
        Names, sorted.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.is_file(follow_symlinks=False)
                or not any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in ours)
            )
    except FileNotFoundError:
        return []


def remove_folder(folder: Path | str, ours: Sequence[str]) -> bool:
    """Remove a folder's files of these names, then the folder if nothing else is in it.

    Args:
        folder: as `strangers` takes it.
        ours: as `strangers` takes it.
    Returns:
        Whether the folder is gone.
    """
    left = strangers(folder, ours)
    with contextlib.suppress(OSError):  # another process removes the same folder
        for name in {*os.listdir(folder)} - {*left}:
            os.unlink(Path(folder) / name)
        os.rmdir(folder)
    return not os.path.lexists(folder)


def set_aside(path: Path | str) -> Path:
    """Give a file a name that is free: `log.1.jsonl` for `log.jsonl`, and so on.

    Args:
        path: the file.
    Returns:
        Its new name.
    """
    path = Path(path)
    number = 1
    while os.path.lexists(new := path.with_name(f"{path.stem}.{number}{path.suffix}")):
        number += 1
    os.rename(path, new)
    return new


def sweep(folder: Path | str, name: str) -> None:
    """Remove the hidden folders that a process left which was killed in `whole_folder`.

    Args:
        folder: where they lie.
        name: what they were to be called, as a regular expression.
    """
    for left in Path(folder).glob(".*"):
        if re.fullmatch(rf"\.(?:{name})\.[a-z0-9_]{{8,16}}", left.name) and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(path: Path | str, ours: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to fill that is whole or absent.

    The block fills a hidden folder in the same place, which gets the name at the block's end. An
    error in the block removes it and leaves an older folder of that name as it was.

    Args:
        path: the folder; those above it are made, and a link is followed.
        ours: names of files, `*` in them for anything. An older folder is replaced only where it
            holds nothing else.
    Raises:
        FileExistsError: where an older folder holds something else.
        OSError: where the disk is full, in one line; and as `check_folder`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as above:
        ...     with whole_folder(f"{above}/model") as folder:
        ...         with whole_file(folder / "a.txt") as file:
        ...             _ = file.write(b"all")
        ...     strangers(f"{above}/model", ["*.txt"])
        []
    """
    real = check_folder(path)
    _check_ours(path, real, ours)
    work = _beside(real)
    try:
        work.mkdir(parents=True)
        yield work
        _check_ours(path, real, ours)
        _take_folder(work, real)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise disk_full(path, error) from error
        raise


def _check_ours(path: Path | str, real: Path, ours: Sequence[str]) -> None:
    left = strangers(real, ours)
    if left:
        raise FileExistsError(
            f"{path} is there already and holds {left[0]}, which is not replaced: move it, or give "
            f"another name"
        )


def _take_folder(work: Path, real: Path) -> None:
    """Rename; an older folder goes when the new one is in its place."""
    old = _beside(real) if real.exists() else None
    if old:
        os.rename(real, old)
    try:
        os.rename(work, real)
    except OSError as error:
        if old:
            os.rename(old, real)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(f"{real} was made by another process meanwhile") from error
        raise
    if old:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def lock(folder: Path | str) -> Iterator[None]:
    """Hold a run's folder for one process; a lock ends with its process, however that ends.

    Args:
        folder: which is there; its file `.lock` is made.
    Raises:
        BlockingIOError: where another process has it.
    """
    handle = os.open(real_output(Path(folder) / ".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BlockingIOError(
                    f"another process is training in {folder}: wait for it, or give another folder"
                ) from None
        yield
    finally:
        os.close(handle)


def folds_case(folder: Path | str) -> bool:
    """Whether the file system there takes names of other case for the same; a file is made and
    removed to see. False where nothing can be written."""
    probe = Path(folder) / f".pcdm-a-{secrets.token_hex(8)}"
    try:
        probe.touch(exist_ok=False)
    except OSError:
        return False  # which is said where it is tried
    try:
        return probe.with_name(probe.name.upper()).exists()
    finally:
        probe.unlink(missing_ok=True)


def disk_full(path: Path | str, error: OSError) -> OSError:
    """The same error in one line that names the file and says what to do."""
    message = f"{path} was not written, {FULL.get(error.errno or 0, 'the disk is full')}"
    found = OSError(f"{message}: free some space and give the same command again")
    found.errno = error.errno
    return found
