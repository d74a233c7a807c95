"""The one way to write a file: `check_output` before the work, `whole_file` for the writing.

JSON, arrays, pictures and archives are written by `whole_file`. `compress`, `decompress`,
`evaluate` and `likelihoods` call `check_output` for the file that a user names, before they load a
model.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

_NAME_BYTES = 255  # of one name on Linux, macOS and Windows
_KINDS = (
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)
_FULL = {
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
    work = real.with_name(f".{real.name[:40]}.{secrets.token_hex(8)}")
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
        if isinstance(error, OSError) and error.errno in _FULL:
            raise disk_full(path, error) from error
        raise


def _take_place(work: Path, real: Path) -> None:
    """Rename, unless the name was taken meanwhile by something that must not be replaced; a file
    that is replaced hands on its mode."""
    with contextlib.suppress(FileNotFoundError):
        old = os.lstat(real)
        if not stat.S_ISREG(old.st_mode):
            raise ValueError(f"{real} is no ordinary file any more, so it was not replaced")
        os.chmod(work, stat.S_IMODE(old.st_mode))
    os.replace(work, real)


def disk_full(path: Path | str, error: OSError) -> OSError:
    """The same error in one line that names the file and says what to do."""
    message = f"{path} was not written, {_FULL.get(error.errno or 0, 'the disk is full')}"
    found = OSError(f"{message}: free some space and give the same command again")
    found.errno = error.errno
    return found
