"""Arrays of bytes from MATLAB files of version 5.

SciPy reads all that such a file can hold, and some files that are no such files end the whole
process in it. This reads the one kind that is needed here, and checks each length before it is
used.

Source: MathWorks, "MAT-File Format" (level 5).
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

_HEADER = 128  # bytes
_HEAD = 4096  # bytes of a variable in which its name and shape must stand
_ORDER = {b"IM": "<", b"MI": ">"}
_INT8, _UINT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 2, 5, 6, 14, 15
_CLASSES = ("cell", "struct", "object", "text", "sparse", "float64", "float32", "int8", "uint8")
_UINT8_CLASS = 9


class Variable(NamedTuple):
    """One variable of a file.

    Attributes:
        kind: of its numbers, such as "uint8".
        shape: as MATLAB has it.
        values: uint8, of that shape; None where it was not asked for, or is of another kind.
    """

    kind: str
    shape: tuple[int, ...]
    values: np.ndarray | None


def read_matlab(path: Path, wanted: Mapping[str, int]) -> dict[str, Variable]:
    """The variables of a MATLAB file, and the values of some.

    Args:
        path: the file.
        wanted: names of arrays of bytes, and how many bytes each may have.

    Returns:
        What each variable is, by its name.

    Raises:
        ValueError: where the file is no MATLAB file of version 5, is cut short or damaged, or an
            array is larger than it may be.
    """
    found = {}
    with path.open("rb") as file:
        header = file.read(_HEADER)
        order = _ORDER.get(header[126:128], "")
        if not order or struct.unpack_from(f"{order}H", header, 124) != (0x0100,):
            raise ValueError("its first bytes are others")
        for kind, body in _elements(file, order):
            if kind not in (_MATRIX, _COMPRESSED):
                raise ValueError(f"it has an element of type {kind}")
            name, variable = _variable(kind, body, order, wanted)
            found[name] = variable
    return found


def _elements(file: BinaryIO, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of all that stands in a file behind its header."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    while left > 0:
        kind, length = struct.unpack(f"{order}II", file.read(8)) if left >= 8 else (0, 0)
        left -= 8 + length
        if left < 0:  # before memory is taken for so many bytes
            raise ValueError("it ends in the middle")
        yield kind, file.read(length)


def _variable(
    kind: int, body: bytes, order: str, wanted: Mapping[str, int]
) -> tuple[str, Variable]:
    """A variable's name and what it is."""
    length, head, pressed = len(body), body[:_HEAD], kind == _COMPRESSED
    if pressed:
        head = _inflated(body, _HEAD)
        kind, length = struct.unpack_from(f"{order}II", head) if len(head) >= 8 else (0, 0)
        head = head[8:]
        if kind != _MATRIX:
            raise ValueError(f"a compressed part holds an element of type {kind}")
    flags, at = _part(head, 0, order, _UINT32)
    shape, at = _part(head, at, order, _INT32)
    title, at = _part(head, at, order, _INT8)
    if len(flags) != 8 or len(shape) < 8 or len(shape) % 4:
        raise ValueError("a variable has no class or no shape")
    number = struct.unpack(f"{order}I", flags[:4])[0] & 255
    sides = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    if min(sides) < 0:
        raise ValueError("a variable has a side below 0")
    name = title.decode("latin-1")
    what = _CLASSES[number - 1] if 1 <= number <= len(_CLASSES) else f"class {number}"
    if name not in wanted or number != _UINT8_CLASS:
        return name, Variable(what, sides, None)
    count = math.prod(sides)
    if count > wanted[name]:
        raise ValueError(f"{name} of {sides} has more than {wanted[name]} bytes")
    if length > at + count + 16:
        raise ValueError(f"{name} is longer than its shape says")
    if pressed:
        body = _inflated(body, 8 + length, whole=True)[8:]
    values, _ = _part(body, at, order, _UINT8)
    if len(values) != count:
        raise ValueError(f"{name} of {sides} has {len(values)} bytes")
    return name, Variable(what, sides, np.frombuffer(values, np.uint8).reshape(sides, order="F"))


def _inflated(body: bytes, most: int, *, whole: bool = False) -> bytes:
    """The first bytes of a compressed part; all of it, which must be so many, and its checksum is
    compared."""
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(body, most)
        if whole and not inflater.eof:
            found += inflater.decompress(inflater.unconsumed_tail, 1)  # reads the checksum
    except zlib.error as error:
        raise ValueError(f"a compressed part is damaged: {error}") from error
    if whole and not (inflater.eof and len(found) == most):
        raise ValueError("a compressed part has another length than it says")
    return found


def _part(body: bytes, at: int, order: str, expected: int) -> tuple[bytes, int]:
    """The content of the part at a place, and where the next one begins."""
    if at + 8 > len(body):
        raise ValueError("a variable ends in the middle")
    kind, length = struct.unpack_from(f"{order}II", body, at)
    start, end = at + 8, at + 8 + length + -length % 8
    if kind >> 16:  # up to four bytes, in the place of the length
        kind, length, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if length > 4:
            raise ValueError("a short part is long")
    if kind != expected:
        raise ValueError(f"a variable has a part of type {kind} in place of {expected}")
    if start + length > len(body):
        raise ValueError("a variable ends in the middle")
    return body[start : start + length], end
