"""The one place where errors become messages: one line each, that says what to do.

A reader or a writer raises an error whose text is the message. Here are the errors that come from
below, from the system and from torch, and the form of all of them. What is not known here is a
bug, and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import NamedTuple

import typer

from pcdm_lib import outputs
from pcdm_lib.advice import Interrupted, MissingExtra

_INPUT = (ValueError, TypeError, OSError, KeyError, ArithmeticError, MissingExtra)
# what libraries that are no Python say of a full disk and of too little memory
_FULL_TEXTS = (
    "No space left on device",
    "os error 28",
    "StorageFull",
    "iostream error",  # torch.save's two
    "unexpected pos",
)
_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_cpu",
    "bad_alloc",
    "alloc_failed",
    "storage size calculation overflowed",
)
_SMALLER = {
    "train": "give --set batch_size=N with a smaller N, or a smaller preset",
    "sample": "draw fewer images by --count",
    "likelihoods": "score fewer images by --images",
    "compress": "code fewer tiles at once by --batch",
    "tables": "give -p a smaller number of images or samples",
}
_STOPPED = (
    "stopped; a training run continues with --resume, tables with the same command; of a file "
    "nothing was written"
)
_STOPPED_AT = {
    "decompress": "stopped; the images that were written are whole, --only gets the others",
    "sample": "stopped; the images that were written are whole",
}


class Said(NamedTuple):
    """What a command ends with: its exit status, and one line without the command's name."""

    status: int
    text: str


def said(error: BaseException, command: str = "") -> Said | None:
    """What a command says of an error, or None for a bug.

    Args:
        error: what ended the command.
        command: its name, such as "train".

    Example:
        >>> said(MemoryError(), "sample")
        Said(status=2, text='not enough memory: draw fewer images by --count')
        >>> said(RuntimeError("shapes do not fit")) is None
        True
    """
    if isinstance(error, Interrupted):
        return Said(130, one_line(str(error)))
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return Said(130, _STOPPED_AT.get(command, _STOPPED))
    if _lacks_memory(error):
        gpu = " on the GPU" if "cuda" in str(error).lower() else ""
        what = _SMALLER.get(command, "close other programs, or take a machine with more")
        return Said(2, f"not enough memory{gpu}: {what}")
    if _disk_is_full(error):
        return Said(2, _full(error))
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # Path.expanduser
        return Said(2, "a path begins with ~ and a name that is no user's: give the whole path")
    if isinstance(error, _INPUT):
        return Said(2, one_line(_text(error)))
    return Said(1, one_line(str(error))) if _is_known(error) else None


def one_line(text: str) -> str:
    """A text of several lines as one, safe for a terminal: a stranger may have chosen a name in it.

    Example:
        >>> one_line("two differ:\\n  a: 1\\n  b: 2")
        'two differ: a: 1; b: 2'
    """
    found = ""
    for part in filter(None, (line.strip() for line in text.splitlines())):
        found += part if not found else f" {part}" if found.endswith((":", ",")) else f"; {part}"
    return "".join(c if c.isprintable() or _is_lone(c) else ascii(c)[1:-1] for c in found)


def _is_lone(character: str) -> bool:
    """A byte of a file's name that is no text; the stream escapes it."""
    return "\ud800" <= character <= "\udfff"


def speak_plainly() -> None:
    """Let stdout and stderr escape what the terminal cannot show, where they would fail on it."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def hush() -> None:
    """Nobody reads stdout any more: write the rest nowhere, so that its end says nothing."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # no file, as in a notebook or a test
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that it was made of."""
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in found:
        found.append(link)
        link = link.__cause__ or link.__context__
    return found


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _MEMORY_TEXTS)


def _disk_is_full(error: BaseException) -> bool:
    return any(
        (isinstance(link, OSError) and link.errno in outputs.FULL)
        or (not isinstance(link, OSError) and any(part in str(link) for part in _FULL_TEXTS))
        for link in _chain(error)
    )


def _full(error: BaseException) -> str:
    """Of a full disk: the writer's own line where it wrote one, which names the file."""
    if isinstance(error, OSError) and not error.strerror and str(error):
        return one_line(str(error))
    name = next((n for e in _chain(error) if (n := getattr(e, "filename", None))), None)
    where = f"{name} was not written, the" if name else "the"
    return one_line(
        f"{where} disk is full: free some space and give the same command again; what was whole "
        f"before is so still"
    )


def _text(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"what was read lacks {error}: it is damaged, or of another version"
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[:1].lower() + error.strerror[1:]
        return f"{error.filename}: {reason}" if error.filename else reason
    return str(error) or f"{type(error).__name__} without a word: please report this"


def _is_known(error: BaseException) -> bool:
    """Whether a command may end by this error with status 1."""
    if not isinstance(error, RuntimeError):
        return False
    from pcdm_lib.training.distributed import ProcessFailed

    if isinstance(error, ProcessFailed):
        return True
    archive = sys.modules.get("pcdm_lib.coding.archive")
    return archive is not None and isinstance(error, archive.NotVerified)
