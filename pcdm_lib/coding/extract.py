"""Where the images of a `.pcdm` file may be written: a stranger's file must not choose, and one
name that no file can have must not hold up the other images."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pcdm_lib import outputs

_NAME_MAX, _PATH_MAX = 255, 4095  # bytes, where the system does not say


class Targets(NamedTuple):
    """Where images go.

    Attributes:
        paths: the PNG file of every image that can be written, by its name.
        impossible: why the others cannot be, by name.
        renamed: those of `paths` that got a number for a name.
    """

    paths: dict[str, Path]
    impossible: dict[str, str]
    renamed: dict[str, Path]


def targets(
    names: Sequence[str],
    folder: Path,
    replace: bool = False,
    rename: bool = False,
    chosen: Sequence[str] | None = None,
) -> Targets:
    """The PNG file in `folder` for every image's name. A name without ".png" gets it.

    Args:
        names: as the `.pcdm` file has them.
        replace: whether files that exist may be replaced.
        rename: whether images whose names are impossible are written as "image-00007.png", by their
            place among the names.
        chosen: those of the names that are wanted; all of them where it is None.
    Raises:
        ValueError: where a file exists already, or no image has a possible name.
    """
    limits = _Limits.of(folder)
    impossible: dict[str, str] = {}
    wanted: dict[str, Path] = {}
    numbers = {name: number for number, name in enumerate(names, 1)}
    names = [*dict.fromkeys(chosen or names)]
    for name in names:
        path = folder / png_name(name)
        reason = limits.reason(name, path) or _blocked(path, folder)
        if reason:
            impossible[name] = reason
        else:
            wanted[name] = path
    key = _key(wanted.values(), folder)
    impossible |= _clashes(wanted, key)
    impossible = {name: impossible[name] for name in names if name in impossible}
    paths = {name: path for name, path in wanted.items() if name not in impossible}
    renamed: dict[str, Path] = {}
    if rename:
        used = {key(path) for path in paths.values()}
        for name in names:
            if name in impossible:
                renamed[name] = _numbered(folder, numbers[name], used, key, replace)
        paths, impossible = paths | renamed, {}
    _refuse(names, paths, impossible, replace)
    return Targets(paths, impossible, renamed)


def warnings(names: Sequence[str]) -> list[str]:
    """What is said when a file is made of images of these names: which of them `targets` cannot
    give back, here or on other systems; one line each."""
    limits = _Limits()
    paths = {name: Path(png_name(name)) for name in names}
    here = {name: why for name, path in paths.items() if (why := limits.reason(name, path))}
    possible = {name: path for name, path in paths.items() if name not in here}
    here |= _clashes(possible, str)
    elsewhere = _clashes(possible, _folded)
    elsewhere |= {name: "it has a backslash" for name in possible if "\\" in name}
    elsewhere = {name: why for name, why in elsewhere.items() if name not in here}
    found = []
    for reasons, what in ((here, ""), (elsewhere, " on some systems")):
        some = {name: reasons[name] for name in names if name in reasons}
        if some:
            found.append(
                f"decompress cannot write {_listed(some)} under that name{what}: rename the images "
                f"first, or use decompress --rename later"
            )
    return found


def png_name(name: str) -> str:
    """The name of an image's PNG file."""
    return name if name.lower().endswith(".png") else f"{name}.png"


def described(name: str, reason: str) -> str:
    """A name and what is wrong with it, in one line that is safe for a terminal."""
    short = name if len(name) <= 60 else f"{name[:40]}...{name[-16:]}"
    return f"{short!a} ({reason})" if not short.isprintable() else f"{short!r} ({reason})"


def _listed(reasons: dict[str, str]) -> str:
    some = [described(name, reason) for name, reason in list(reasons.items())[:3]]
    more = len(reasons) - len(some)
    return ", ".join(some) + (f" and {more} more" if more else "")


class _Limits(NamedTuple):
    """Of names and paths, in bytes."""

    name: int = _NAME_MAX
    path: int = _PATH_MAX

    @classmethod
    def of(cls, folder: Path) -> _Limits:
        """Those of the file system where the folder is or will be."""
        there = _existing(folder)
        try:
            return cls(os.pathconf(there, "PC_NAME_MAX"), os.pathconf(there, "PC_PATH_MAX") - 1)
        except (AttributeError, OSError, ValueError):
            return cls()

    def reason(self, name: str, path: Path) -> str:
        """Why an image of that name cannot be that file; "" where nothing is wrong with it."""
        parts = Path(png_name(name)).parts
        if Path(name).is_absolute() or Path(name).drive or ".." in re.split(r"[/\\]", name):
            return "it leads out of the folder"
        if os.sep == "\\" and "\\" in name:
            return "it has a backslash, which separates folders here"
        try:
            long = max((len(os.fsencode(part)) for part in parts), default=0)
            whole = len(os.fsencode(path))
        except UnicodeEncodeError:
            return "it has characters that no file name has here"
        if "\0" in name:
            return "it has a character that no file name has"
        if long > self.name:
            added = "" if name.lower().endswith(".png") else ", with .png added,"
            return f"it takes {long} bytes{added} and {self.name} are possible"
        if whole > self.path:
            return f"its path takes {whole} bytes, and {self.path} are possible"
        return ""


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _blocked(path: Path, folder: Path) -> str:
    """What of the folder stands in the way of that file."""
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            return "it leads out of the folder"
        if path.is_dir():
            return "a folder of that name is there"
        outputs.real_output(path)
        for parent in path.parents:
            if parent == folder:
                break
            if parent.exists() and not parent.is_dir():
                return f"{parent} is there and no folder"
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a pipe, a device
        return str(error)
    return ""


def _folded(path: Path | str) -> str:
    """A path as file systems see it that count neither case nor Unicode normal form."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _key(paths: Iterable[Path], folder: Path) -> Callable[[Path], str]:
    """What two paths have in common where the folder's file system takes them for one."""
    exact = {str(path) for path in paths}
    if len({_folded(path) for path in exact}) < len(exact) and outputs.folds_case(
        _existing(folder)
    ):
        return _folded
    return str


def _clashes(wanted: dict[str, Path], key: Callable[[Path], str]) -> dict[str, str]:
    """Names whose file another one needs: as a file, which then goes to the image that is called
    so, or as a folder."""
    owner: dict[str, str] = {}
    for name, path in wanted.items():
        first = owner.setdefault(key(path), name)
        if str(path).endswith(name) and not str(wanted[first]).endswith(first):
            owner[key(path)] = name
    found = {
        name: f"it would become {path.name}, as {owner[key(path)]!a} does"
        for name, path in wanted.items()
        if owner[key(path)] != name
    }
    folders = {key(parent) for path in wanted.values() for parent in path.parents}
    for name, path in wanted.items():
        if name not in found and key(path) in folders:
            found[name] = f"others need a folder called {path.name}"
    return found


def _numbered(
    folder: Path, number: int, used: set[str], key: Callable[[Path], str], replace: bool
) -> Path:
    """A name that nobody else has."""
    stem, extra = f"image-{number:05d}", ""
    for count in range(2, 1 << 20):
        path = folder / f"{stem}{extra}.png"
        if key(path) not in used and (replace or not os.path.lexists(path)):
            break
        extra = f"-{count}"
    used.add(key(path))
    return path


def _refuse(
    names: Sequence[str], paths: dict[str, Path], impossible: dict[str, str], replace: bool
) -> None:
    if names and not paths:
        raise ValueError(
            f"no image can be written: {_listed(impossible)}. --rename writes such images under "
            f"numbers"
        )
    taken = sorted(path for path in paths.values() if os.path.lexists(path))
    if taken and not replace:
        raise ValueError(
            f"{taken[0]} is there already ({len(taken)} such files): give another folder, or "
            f"--force"
        )
