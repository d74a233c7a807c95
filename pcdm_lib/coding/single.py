"""A `.pcdm` file of one image by a direct cascade: format version 3, at most 40 bytes around the
coded words.

    18 bytes  the preamble of every version (coding/container.py): magic, version, length of the
              header, CRC of the 14 bytes before it and the header
    header    4 bytes, the first of the digest of the model
              varints: C, H, W, how many bytes of UTF-8 the name takes
              the name; none where it is that of the file, with .png for its suffix
              u32, the checksum of the image
    body      varints: how many marks, the marks (coding/direct.py); then the words of the stream
              to the end of the file

There is no index, and no checksum of the body: what the body decodes to is checked by the image's.
"""

from __future__ import annotations

import math
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

from pcdm_lib.coding.chunks import PayloadBytes
from pcdm_lib.coding.container import (
    MAGIC,
    MAX_NAME,
    MAX_SIDE,
    PREAMBLE,
    PREAMBLE_BYTES,
    ChunkInfo,
    DamagedFile,
    Entry,
    check_name,
    varints,
)

VERSION = 3
MARKS = 2
_DIGEST = 4  # bytes
_MAX_HEADER = _DIGEST + 4 * 9 + MAX_NAME + 4


def pack(path: Path | str, digest: str, entry: Entry, payload: bytes) -> bytes | None:
    """The file of one image.

    Args:
        path: of the file, whose name an image has that is stored without one.
        digest: of the model, hexadecimal.
        entry: name, shape and checksum of the image.
        payload: what `DirectCodec.encode` gave for it.

    Returns:
        The bytes; None where the image is a plain file or a piece, which this form cannot hold.
    """
    data = PayloadBytes(payload)
    if entry.piece or data.varint():
        return None
    marks = [data.varint() for _ in range(data.varint())]
    data.varint()  # the words end with the file
    name = b"" if entry.name in (Path(path).stem, _usual(path)) else check_name(entry.name)
    header = bytes.fromhex(digest)[:_DIGEST] + varints([*entry.shape, len(name)]) + name
    header += struct.pack("<I", entry.checksum)
    start = PREAMBLE.pack(MAGIC, VERSION, len(header), 0)[:-4]
    seal = struct.pack("<I", zlib.crc32(header, zlib.crc32(start)))
    marks = marks[-MARKS:]
    return start + seal + header + varints([len(marks), *marks]) + data.rest()


def _usual(path: Path | str) -> str:
    """The name that an image without one gets."""
    return f"{Path(path).stem}.png"


def is_single(path: Path | str) -> bool:
    """Whether a file begins as one of this version.

    Args:
        path: of the file.

    Returns:
        False also for what cannot be read, which the reader of the other versions explains.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # to open a pipe might wait for ever
            return False
        with open(path, "rb") as file:
            return file.read(len(MAGIC) + 2) == MAGIC + struct.pack("<H", VERSION)
    except (OSError, ValueError):
        return False


class SingleReader:
    """Reads such a file, with what `container.Reader` has of a file with one chunk.

    Args:
        path: of the file.

    Attributes:
        header: the start of the model's digest, and the version of the coding.
        chunks: the one.
        damage: nothing: what is cut off shows when the image is decoded.

    Raises:
        DamagedFile: where the header is damaged.
    """

    def __init__(self, path: Path | str):
        self.path, self.version, self.damage, self.num_images = Path(path), VERSION, (), 1
        with open(self.path, "rb") as file:
            start = file.read(PREAMBLE_BYTES)
            _, _, length, seal = PREAMBLE.unpack(start.ljust(PREAMBLE_BYTES, b"\0"))
            header = file.read(min(length, _MAX_HEADER))
            try:
                if zlib.crc32(header, zlib.crc32(start[:-4])) != seal:
                    raise ValueError("its checksum is wrong")
                self._entry, digest = self._parsed(header)
            except ValueError as error:
                raise DamagedFile(
                    f"{path}: the header at the start is damaged or cut short, and without it "
                    f"nothing can be decoded ({error}): get a whole copy of the file"
                ) from None
            most = 1024 + 8 * math.prod(self._entry.shape)  # no image takes as much
            self._body = file.read(most + 1)
        if len(self._body) > most:
            raise DamagedFile(f"{path}: more follows the image than it can take: get a whole copy")
        self.header: dict[str, Any] = {"model": "", "digest": digest, "coding": 2, "tables": None}
        size = PREAMBLE_BYTES + len(header) + len(self._body)
        self.chunks = (ChunkInfo(0, 0, size, 0, 1),)

    def _parsed(self, header: bytes) -> tuple[Entry, str]:
        data = PayloadBytes(header)
        digest = data.take(_DIGEST).hex()
        channels, height, width, length = (data.varint() for _ in range(4))
        name = data.take(length).decode() or _usual(self.path)
        (checksum,) = struct.unpack("<I", data.take(4))
        if channels not in (1, 3) or not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ValueError("an impossible shape")
        if data.left:
            raise ValueError("more follows it")
        return Entry(name, (channels, height, width), checksum), digest

    def entries(self, number: int) -> list[Entry]:
        """The image.

        Args:
            number: 0.

        Returns:
            Its entry.
        """
        return [self._entry]

    def chunk(self, number: int) -> tuple[list[Entry], bytes]:
        """The image and the payload that `DirectCodec.decode` takes.

        Args:
            number: 0.

        Returns:
            Entry and payload.

        Raises:
            DamagedFile: where the body is too short for its marks.
        """
        try:
            data = PayloadBytes(self._body)
            marks = [data.varint() for _ in range(min(data.varint(), MARKS + 1))]
            if len(marks) > MARKS or data.left < 4:
                raise ValueError("no words follow")
        except ValueError as error:
            raise DamagedFile(
                f"{self.path} is damaged or cut short ({error}), and {self._entry.name!r} cannot "
                f"be decoded: get a whole copy of the file"
            ) from None
        words = data.rest()
        words = words[: len(words) // 4 * 4]
        return [self._entry], varints([0, len(marks), *marks, len(words) // 4]) + words

    def layout(self) -> dict[str, int]:
        """Bytes by what they hold, as `container.Reader.layout`."""
        return {"header": self.chunks[0].length - len(self._body), "payloads": len(self._body)}

    def partial(self) -> tuple[list[Entry], bytes] | None:
        """Nothing: a file that is cut short reads as a whole one with fewer words."""
        return None

    def close(self) -> None:
        """The file is closed already."""
