"""Where images are looked for: one walk that every loader uses, and one split that no image
crosses."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pcdm_lib.data.images import ORIENTATION, SUFFIXES, TURNED, UNREADABLE, opened_image, read_rgb

# Folders that programs fill with copies, previews and deleted files, beside those that begin with
# a dot (.ipynb_checkpoints, .Trash-1000, .git). Lower case.
HIDDEN_FOLDERS = frozenset(
    (
        "__macosx",
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__pycache__",
    )
)


# what is counted, of one
_ONE = {
    "hidden files": "hidden file",
    "hidden folders": "hidden folder",
    "images": "image",
    "images turned upright": "image turned upright",
    "images carry an EXIF orientation": "image carries an EXIF orientation",
    "grey images as three equal channels": "grey image as three equal channels",
    "links that lead nowhere": "link that leads nowhere",
    "links to folders that are read anyway": "link to a folder that is read anyway",
    "pipes or devices": "pipe or device",
    "repeated images": "repeated image",
    "smaller ones": "smaller one",
    "unreadable folders": "unreadable folder",
}


def counted(number: int, what: str) -> str:
    """A number with what it counts, which is given in the plural.

    Example:
        >>> counted(1, "hidden folders"), counted(2, "hidden folders")
        ('1 hidden folder', '2 hidden folders')
    """
    return f"{number} {_ONE.get(what, what) if number == 1 else what}"


def is_hidden(name: str) -> bool:
    """Whether a folder of that name is skipped wherever images are looked for."""
    return name.startswith(".") or name.lower() in HIDDEN_FOLDERS


@dataclass
class Found:
    """The images under a folder, and what was left out of it.

    `files` are paths relative to the folder, sorted. `left_out` counts by what it was.
    """

    files: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, what: str, count: int = 1) -> None:
        """Count something that is left out."""
        if count:
            self.left_out[what] = self.left_out.get(what, 0) + count

    def notes(self) -> str:
        """What was left out, in one phrase with counts; empty where nothing was.

        Example:
            >>> Found([], {"hidden folders": 2, "repeated images": 1}).notes()
            'left out: 2 hidden folders, 1 repeated image'
        """
        what = ", ".join(counted(count, name) for name, count in sorted(self.left_out.items()))
        return f"left out: {what}" if what else ""


def find_images(folder: Path | str) -> Found:
    """All PNG, JPEG and WebP files under a folder, in sorted order.

    Hidden folders and hidden files are skipped. A linked folder is followed once: not where it
    leads to a folder that is read anyway, nor above the folder itself. Pipes, devices and links
    that lead nowhere are skipped. All of this is counted.
    """
    found = Found()
    top = os.path.realpath(folder)
    seen = {_identity(top)}
    links = _walk(os.fspath(folder), "", found, seen)
    while links:
        name, path = links.pop(0)
        target = os.path.realpath(path)
        if is_hidden(os.path.basename(target)):
            found.leave_out("hidden folders")
        elif _identity(target) in seen or f"{top}{os.sep}".startswith(f"{target}{os.sep}"):
            found.leave_out("links to folders that are read anyway")
        else:
            seen.add(_identity(target))
            links += _walk(path, f"{name}/", found, seen)
    found.files.sort()
    return found


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _walk(
    folder: str, prefix: str, found: Found, seen: set[tuple[int, int]]
) -> list[tuple[str, str]]:
    """Add the images under a folder; returns the linked folders as (name, path)."""
    links = []

    def failed(error: OSError) -> None:
        found.leave_out("unreadable folders")

    for where, folders, names in os.walk(folder, onerror=failed):  # pathlib takes far longer
        inner = os.path.relpath(where, folder).replace(os.sep, "/")
        here = prefix if inner == "." else f"{prefix}{inner}/"
        kept = []
        for name in sorted(folders):
            path = os.path.join(where, name)
            if is_hidden(name):
                found.leave_out("hidden folders")
            elif os.path.islink(path):
                links.append((here + name, path))
            elif (identity := _identity(path)) not in seen:
                seen.add(identity)
                kept.append(name)
        folders[:] = kept
        for name in names:
            # what a Mac leaves beside a file has its suffix, and is no image that could be missed
            if name.lower().endswith(SUFFIXES) and not name.startswith("._"):
                reason = _reason(os.path.join(where, name), name)
                if reason:
                    found.leave_out(reason)
                else:
                    found.files.append(here + name)
    return links


def _reason(path: str, name: str) -> str | None:
    """Why a file with an image's suffix is left out, or None."""
    if name.startswith("."):
        return "hidden files"
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "links that lead nowhere"
    return None if stat.S_ISREG(mode) else "pipes or devices"


@dataclass(frozen=True)
class SplitFiles:
    """Image files to train on and to hold out, relative to their folder; `notes` for the label."""

    train: list[str]
    heldout: list[str]
    notes: str


def split_files(folder: Path, prefix: str) -> SplitFiles:
    """The image files to train on, and the last tenth of them, at least one, to hold out.

    An image that is there under several names counts once, under the first, so that it lies on one
    side. "The same" is: of equal pixels, whatever the format.

    Raises:
        FileNotFoundError: for what is no folder.
        ValueError: where there are fewer than two different images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: give {prefix}PATH a folder of PNG, JPEG or WebP images"
        )
    found = find_images(folder)
    files = distinct(folder, found.files)
    found.leave_out("repeated images", len(found.files) - len(files))
    if len(files) < 2:
        notes = f" ({found.notes()})" if found.left_out else ""
        raise ValueError(
            f"{folder} holds {counted(len(files), 'images')} ({', '.join(SUFFIXES)}){notes}, "
            "expected at least 2, one to train on and one to hold out: add images"
        )
    split = len(files) - max(1, len(files) // 10)
    taken = [found.notes(), *_taken(folder, files)]
    return SplitFiles(files[:split], files[split:], "; ".join(t for t in taken if t))


def distinct(folder: Path, files: Iterable[str]) -> list[str]:
    """The files without those whose pixels an earlier one has.

    Only images of equal height and width are decoded to tell.
    """
    files = list(files)
    sizes = [_header(folder / name)[0] for name in files]
    counts = Counter(sizes)
    kept, seen = [], set()
    for name, size in zip(files, sizes):
        if size is not None and counts[size] > 1:
            pixels = read_rgb(folder / name)
            digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(name)
    return kept


def _header(path: Path) -> tuple[tuple[int, int] | None, bool, bool]:
    """The sides of an image (longer first), whether it is grey, and whether EXIF turns it; no sides
    where it cannot be read, which is said when it is."""
    try:
        with path.open("rb") as file, opened_image(file, check=False) as image:
            turned = image.getexif().get(ORIENTATION, 1) in TURNED
            sides = max(image.size), min(image.size)
            return sides, image.mode in ("1", "L", "LA"), turned
    except UNREADABLE:
        return None, False, False


def _taken(folder: Path, files: list[str]) -> list[str]:
    """What is taken otherwise than it lies there, in phrases with counts."""
    headers = [_header(folder / name) for name in files]
    grey, turned = sum(h[1] for h in headers), sum(h[2] for h in headers)
    return [
        counted(grey, "grey images as three equal channels") if grey else "",
        counted(turned, "images turned upright") if turned else "",
    ]
