"""The docstrings of pcdm_lib as reStructuredText: they are plain text, with formulas in ASCII.

Three things differ. A name in single backticks is code. Characters such as | and * are meant as
they stand. A paragraph that is indented by itself, outside a section such as Args, is a formula or
an example, to be shown as it is.
"""

from __future__ import annotations

import functools
import re
import sys

from sphinx.application import Sphinx

SECTIONS = ("Args", "Attributes", "Example", "Examples", "Note", "Raises", "Returns", "Yields")
_SECTION = re.compile(rf"({'|'.join(SECTIONS)}):\s*$")
_CODE = re.compile(r"(``.+?``|`[^`]+`|\*\*[^*\s][^*]*\*\*)")  # and bold text
_NAMED = re.compile(r"\w[\w, ]*: ")
_HIDDEN = "\ue000"
_BULLET = re.compile(r"(\s*[*-] )(.*)")


def to_rst(lines: list[str]) -> list[str]:
    """The lines of one docstring, ready for napoleon."""
    out: list[str] = []
    section = False
    for block in _blocks(lines):
        if not block[0].startswith("  "):
            section = bool(_SECTION.match(block[0]))
        if section:
            out += [line if _SECTION.match(line) else _escape(_clamp(line, 8)) for line in block]
        elif block[0].startswith("  "):
            out += ["::", "", *block]
        else:
            out += _paragraph(block)
        out.append("")
    return out


def _blocks(lines: list[str]) -> list[list[str]]:
    """Runs of lines between blank ones."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _paragraph(block: list[str]) -> list[str]:
    """Text, a list, or names with hanging descriptions, which become a list."""
    listed = bool(_BULLET.match(block[0]))
    if not listed:
        hangs = [line.startswith("  ") for line in block]
        named = all(_NAMED.match(x) for x, hanging in zip(block, hangs, strict=True) if not hanging)
        marks = ["  " if hanging else "* " for hanging in hangs]
        marks = marks if named and any(hangs) else [""] * len(block)
        return [mark + _escape(x.strip()) for mark, x in zip(marks, block, strict=True)]
    return [_item(_clamp(line, 2)) for line in block]


def _clamp(line: str, most: int) -> str:
    """The line, indented by so many spaces at most: deeper continuations mean the same."""
    text = line.lstrip()
    return " " * min(len(line) - len(text), most) + text


def _item(line: str) -> str:
    bullet = _BULLET.match(line)
    return bullet.group(1) + _escape(bullet.group(2)) if bullet else _escape(line)


def _escape(text: str) -> str:
    """Code in literals; everything else means what it shows, also "- 1" or "(2)" at the front."""
    parts = _CODE.split(text)
    text = "".join(_code(part) if i % 2 else _plain(part) for i, part in enumerate(parts))
    return re.sub(r"^(\s*)([-+] |\(?\w{1,2}[.)] )", r"\1\\\2", text)


def _code(text: str) -> str:
    if text.startswith("**"):
        return "**" + _plain(text.strip("*")) + "**"
    return "``" + text.strip("`") + "``"


def _plain(text: str) -> str:
    """Text that means what it shows: no emphasis, substitution or hyperlink target."""
    if text.lstrip().startswith(">>>"):
        return text
    text = text.replace("\\", "\\\\").replace("*", r"\*").replace("|", r"\|").replace("`", r"\`")
    return re.sub(r"_(?!\w)", r"\_", text)


def _borrowed(obj: object) -> bool:
    """Whether a method has no docstring but one of a class of another library, such as torch's."""
    path, name = getattr(obj, "__qualname__", "").rpartition(".")[::2]
    if not path or "<locals>" in path or obj.__doc__:
        return False
    owner = functools.reduce(getattr, path.split("."), sys.modules[obj.__module__])
    parents = [base for base in owner.__mro__ if getattr(vars(base).get(name), "__doc__", None)]
    return bool(parents) and not parents[0].__module__.startswith("pcdm_lib")


def _before(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    lines[:] = [] if _borrowed(obj) else to_rst(lines)
    if what in ("attribute", "property", "data") and lines:
        # napoleon would read "text: more text" as a type and its description
        lines[0] = lines[0].replace(": ", f"{_HIDDEN} ")


def _after(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    lines[:] = [line.replace(_HIDDEN, ":") for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Convert before napoleon, whose priority is 500, and put hidden colons back after it."""
    app.connect("autodoc-process-docstring", _before, priority=400)
    app.connect("autodoc-process-docstring", _after, priority=600)
    return {"parallel_read_safe": True}
