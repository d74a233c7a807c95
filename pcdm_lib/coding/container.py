r"""The `.pcdm` file: names, shapes, checksums and coded bytes of images, in chunks that can be read
one by one and whose damage is found and confined.

The container knows nothing of the model: what it needs is in the header, what it made of the images
is in the payloads, and both are the caller's. Integers are little-endian. A varint has seven bits a
byte, lowest first, the top bit set in all but its last byte. CRC is zlib's CRC32; "deflated" is raw
DEFLATE (RFC 1951) without zlib's own six bytes of frame, for the CRCs here do their work. All
offsets count from the start of the file.

Preamble and header, PREAMBLE_BYTES + the header:

    8 bytes  magic 8F "PCDM" 0D 0A 1A: no transfer in text mode, or of 7 bits, leaves it as it is
    u16      format version
    u32      length of the header
    u32      CRC of the 14 bytes before it and the header: the seal of the file
    header   deflated JSON, UTF-8, an object

The preamble is the same in every version, so that a damaged version and a new one can be told
apart.

Chunks, one after the other, CHUNK_BYTES + chunk header + payload each:

    4 bytes  marker 8E "CHK"
    u32      length of the chunk header
    u64      length of the payload
    u32      CRC of the payload
    u32      CRC of the 20 bytes before it and the chunk header, begun with the seal of the file
             instead of 0
    header   varints: number of the chunk in the file (from 0), number of its first image in the
             file (from 0), number n of its images
             deflated: n names, each UTF-8 with a NUL after it, then the shapes in runs, each of
             four varints: how many images, C, H, W
             n u32: the checksums of the images, not deflated, for they have no structure
    payload  bytes of the caller

Version 2 is version 1 with pieces: an image that is too large for one chunk lies in several. Behind
the shapes, within what is deflated, then follow four varints for every entry of the chunk: top and
left of the piece, height and width of its image. The shape and the checksum are the piece's, all
pieces of an image have its name, follow each other and leave no gap. Every piece counts as an
image in the numbers of this format. A file without pieces is written as version 1, which older
readers read.

An empty name, which no image has, stands for the name before it counted up by one: the last group
of decimal digits before the last dot, of at most 18 digits, keeps its width where it can
("test-00017.png", "test-00018.png"). Names that count up thus cost next to nothing.

Index and trailer, TRAILER_BYTES + the index, at the end:

    index    varints: number of chunks, then the length of each whole chunk, then the number of
             images of each; deflated where that is shorter
    u32      length of the index, with the top bit set where it is deflated
    u32      CRC of the index and the 4 bytes before this field, begun with the seal of the file
    4 bytes  end 8E "END"

The chunks lie end to end from the header to the index, so their lengths say where they are, and
they cannot overlap.

The seal in the CRCs costs nothing and binds chunks and index to the header: a chunk that was cut
from a file of another model is damage, and a `.pcdm` file within a payload is not taken for chunks
of this one. Numbers of chunks and images are counted from 0 in this module and from 1 in its
messages.

Version 3 is one image by a direct cascade, without chunks and index (coding/single.py).

A reader that finds the index damaged walks the chunks from the front; where that ends at something
that is no chunk, it searches for the next marker with a sound chunk header. The numbers in chunk
headers then tell which images are missing. Limits (MAX_...) keep hostile files from using time or
memory: what is read in one piece is never longer than the file, and what is inflated never longer
than a limit. A name may be any text, "../x" too: who makes files of names must check them.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import re
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from pcdm_lib import outputs

VERSIONS = (1, 2)
MAX_HEADER = 1 << 20  # bytes of JSON
MAX_NAME = 1024  # bytes of UTF-8
MAX_CHUNK_IMAGES = 1 << 16
MAX_CHUNK_NAMES = 1 << 24  # bytes of all the names and shapes of a chunk
MAX_CHUNKS = 1 << 20
MAX_SIDE = 65535  # of an image in one chunk, and of a piece
MAX_WHOLE = (1 << 31) - 1  # side of an image in pieces: the largest of PNG

MAGIC, _MARKER, _END = b"\x8fPCDM\r\n\x1a", b"\x8eCHK", b"\x8eEND"
PREAMBLE, _CHUNK, _TRAILER = (
    struct.Struct("<8sHII"),
    struct.Struct("<4sIQII"),
    struct.Struct("<II4s"),
)
# 18, 24, 12
PREAMBLE_BYTES, CHUNK_BYTES, TRAILER_BYTES = PREAMBLE.size, _CHUNK.size, _TRAILER.size

_DEFLATED = 1 << 31
# three varints, the least that DEFLATE makes of anything, one checksum
_MIN_CHUNK = CHUNK_BYTES + 3 + 2 + 4
_MAX_INDEX = 5 + 20 * MAX_CHUNKS
_MAX_CHUNK_HEADER = 3 * 10 + MAX_CHUNK_NAMES + 4 * MAX_CHUNK_IMAGES
_BLOCK = 1 << 20
_MAX_NOTES = 100
_MARKS = re.compile(re.escape(_MARKER) + b"|" + re.escape(_END))
_COUNTER = re.compile(r"(?<![0-9])([0-9]{1,18})([^0-9]*)\Z")
_COPY = "get a whole copy of the file"


class DamagedFile(ValueError):
    """A file that is no `.pcdm` file, or is damaged or cut short; names the file and, where it is
    about a chunk, the chunk and its images."""


class UnknownVersion(ValueError):
    """A sound preamble of a format version that this module does not read."""


class Piece(NamedTuple):
    """The place of a piece's first pixel in its image, and the sides of the whole image."""

    top: int
    left: int
    height: int
    width: int


class Entry(NamedTuple):
    """An image, or a piece of one: its name, its shape (C, H, W) and the u32 checksum of its
    pixels, which the caller computes and compares; `piece` says where a piece lies."""

    name: str
    shape: tuple[int, int, int]
    checksum: int
    piece: Piece | None = None


class ChunkInfo(NamedTuple):
    """Where a chunk lies: its number, the offset of its first byte, its length in bytes with
    everything in it, its first image and how many it has."""

    number: int
    offset: int
    length: int
    first_image: int
    images: int


class _Unsound(Exception):
    """What is wrong with a piece of a file."""


class _GivenUp(Exception):
    """A search that has read more than any honest file makes it read."""


class _Budget:
    """Bytes that a search may still spend on candidates, so that a file made of false ones cannot
    make it quadratic."""

    def __init__(self, size: int) -> None:
        self.left = 2 * size + (64 << 20)

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise _GivenUp


class _Head(NamedTuple):
    """A chunk header whose CRC is right."""

    info: ChunkInfo
    columns: bytes  # names and shapes, deflated, and checksums
    payload: int  # offset
    payload_length: int
    payload_crc: int


# Pieces


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes, limit: int) -> tuple[bytes, bytes]:
    """What DEFLATE made, at most `limit` bytes, and the bytes behind it."""
    unpacker = zlib.decompressobj(-15)
    try:
        result = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise _Unsound(f"it cannot be inflated ({error})") from None
    if len(result) > limit:
        raise _Unsound(f"it inflates to more than {limit} bytes")
    if not unpacker.eof:
        raise _Unsound("what was deflated ends early")
    return result, unpacker.unused_data


def varints(values: Iterable[int]) -> bytes:
    """Numbers from 0 on as varints, one after the other."""
    result = bytearray()
    for value in values:
        while value > 127:
            result.append(value & 127 | 128)
            value >>= 7
        result.append(value)
    return bytes(result)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at that position, and the position behind it."""
    value = shift = 0
    while position < len(data) and shift < 63:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise _Unsound("a number in it does not end")


def _next_name(name: str) -> str | None:
    """The name counted up by one; None where it has no number, or one of more than 18 digits."""
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        stem, suffix = name, ""
    found = _COUNTER.search(stem)
    if found is None:
        return None
    digits, rest = found.groups()
    return f"{stem[: found.start()]}{int(digits) + 1:0{len(digits)}d}{rest}{dot}{suffix}"


def check_name(name: str) -> bytes:
    """An image's name in UTF-8; ValueError where no file can store it."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(
            f"{name!r} cannot be the name of an image: a name is text of one character or more, "
            f"none of them NUL"
        )
    try:
        text = name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name!r} cannot be the name of an image: it is no valid Unicode (UTF-8); rename the "
            f"image"
        ) from None
    if len(text) > MAX_NAME:
        raise ValueError(
            f"the name {name[:40]!r}... takes {len(text)} bytes of UTF-8, and at most {MAX_NAME} "
            f"are possible: give a shorter one"
        )
    return text


def _checked(entry: Entry) -> tuple[Entry, bytes]:
    """The same with plain numbers, and its name in UTF-8; ValueError where it cannot be stored."""
    name, shape, checksum, piece = entry
    text = check_name(name)
    try:
        channels, height, width = map(operator.index, shape)
        checksum = operator.index(checksum)
    except (TypeError, ValueError):
        raise ValueError(
            f"image {name!r}: the shape must be three whole numbers (C, H, W) and the checksum "
            f"one, not {shape!r} and {checksum!r}"
        ) from None
    if channels not in (1, 3) or not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(
            f"image {name!r} has shape {(channels, height, width)}: C must be 1 or 3, and H and W "
            f"from 1 to {MAX_SIDE}"
        )
    if not 0 <= checksum < 1 << 32:
        raise ValueError(f"image {name!r} has checksum {checksum}: it must be from 0 to 2**32 - 1")
    if piece is not None and not _possible(piece, height, width):
        raise ValueError(
            f"image {name!r}: a piece {height}x{width} does not lie within its image at {piece}"
        )
    return Entry(name, (channels, height, width), checksum, piece), text


def _possible(piece: Piece, height: int, width: int) -> bool:
    """Whether something of that size is a piece, not the whole, of such an image."""
    return (
        max(piece.height, piece.width) <= MAX_WHOLE
        and 0 <= piece.top <= piece.height - height
        and 0 <= piece.left <= piece.width - width
        and (height, width) != (piece.height, piece.width)
    )


def _pack_entries(entries: Sequence[Entry], texts: Sequence[bytes]) -> bytes:
    """The columns of a chunk header: names and shapes deflated, then checksums."""
    names: list[bytes] = []
    runs: list[tuple[int, ...]] = []
    expected = None
    for entry, text in zip(entries, texts, strict=True):
        names.append(b"" if entry.name == expected else text)
        expected = _next_name(entry.name)
        if runs and runs[-1][1:] == entry.shape:
            runs[-1] = (runs[-1][0] + 1, *entry.shape)
        else:
            runs.append((1, *entry.shape))
    columns = b"".join(name + b"\0" for name in names) + b"".join(map(varints, runs))
    if any(entry.piece for entry in entries):
        if not all(entry.piece for entry in entries):
            raise ValueError("a chunk holds pieces or whole images, not both")
        columns += b"".join(varints(entry.piece) for entry in entries if entry.piece)
    if max(len(columns), sum(map(len, texts))) > MAX_CHUNK_NAMES:
        raise ValueError(
            f"the names and shapes of {len(entries)} images take more than {MAX_CHUNK_NAMES} "
            f"bytes: put fewer images into a chunk"
        )
    return _deflate(columns) + struct.pack(
        f"<{len(entries)}I", *(entry.checksum for entry in entries)
    )


def _unpack_entries(data: bytes, n: int, version: int) -> list[Entry]:
    """The entries that `_pack_entries` packed; _Unsound where these are not n of them."""
    # the four numbers of a run take up to 8 bytes in a writer's file, those of a piece up to 20
    most = MAX_NAME + 1 + 8 + (20 if version > 1 else 0)
    columns, checksums = _inflate(data, min(MAX_CHUNK_NAMES, n * most))
    if len(checksums) != 4 * n:
        raise _Unsound(f"it has {len(checksums)} bytes of checksums for {n} images")
    *texts, runs = columns.split(b"\0", n)
    if len(texts) != n:
        raise _Unsound(f"it has {len(texts)} names for {n} images")
    names: list[str] = []
    total = 0
    for text in texts:
        try:
            name = text.decode() if text else _next_name(names[-1]) if names else None
        except UnicodeDecodeError:
            raise _Unsound("a name in it is no UTF-8") from None
        if name is None:
            raise _Unsound("a name in it counts up nothing")
        total += len(name)
        # a long name that is counted up many times takes much memory and no bytes
        if len(text) > MAX_NAME or total > MAX_CHUNK_NAMES:
            raise _Unsound("its names are too long")
        names.append(name)
    shapes: list[tuple[int, int, int]] = []
    position = 0
    while len(shapes) < n:
        count, position = _varint(runs, position)
        channels, position = _varint(runs, position)
        height, position = _varint(runs, position)
        width, position = _varint(runs, position)
        if (
            not 1 <= count <= n - len(shapes)
            or channels not in (1, 3)
            or not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE)
        ):
            raise _Unsound("a shape in it is impossible")
        shapes += [(channels, height, width)] * count
    pieces: list[Piece | None] = [None] * n
    if version > 1 and position != len(runs):
        for i, (_, height, width) in enumerate(shapes):
            numbers = []
            for _ in Piece._fields:
                number, position = _varint(runs, position)
                numbers.append(number)
            pieces[i] = piece = Piece(*numbers)
            if not _possible(piece, height, width):
                raise _Unsound("a piece in it does not lie within its image")
    if position != len(runs):
        raise _Unsound("more follows its shapes")
    if len(set(zip(names, pieces))) != n:
        raise _Unsound("two images in it have the same name")
    return list(map(Entry, names, shapes, struct.unpack(f"<{n}I", checksums), pieces))


def _pack_header(header: Mapping[str, Any]) -> bytes:
    """A header as deflated JSON; ValueError where it would not read back as it is."""
    try:
        text = json.dumps(
            dict(header), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
        same = json.loads(text) == dict(header)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the header of a .pcdm file must be a mapping that JSON can hold: {error}"
        ) from error
    if not same:
        raise ValueError(
            "the header of a .pcdm file must read back from JSON as it is: give text for keys and "
            "lists for tuples"
        )
    if len(text) > MAX_HEADER:
        raise ValueError(
            f"the header takes {len(text)} bytes of JSON, and at most {MAX_HEADER} are possible: "
            f"keep only what decoding needs"
        )
    return _deflate(text)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unpack_header(data: bytes) -> dict[str, Any]:
    text, rest = _inflate(data, MAX_HEADER)
    try:
        header = json.loads(text.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _Unsound(f"it is not valid JSON ({type(error).__name__})") from None
    if rest or not isinstance(header, dict):
        raise _Unsound("it is no JSON object, or more follows it")
    return header


def _pack_index(chunks: Sequence[tuple[int, int]], seal: int) -> bytes:
    """Index and trailer of chunks given as (length, images)."""
    index = varints(
        [len(chunks), *(length for length, _ in chunks), *(images for _, images in chunks)]
    )
    deflated = _deflate(index)
    flag = _DEFLATED if len(deflated) < len(index) else 0
    index = deflated if flag else index
    field = struct.pack("<I", len(index) | flag)
    return index + _TRAILER.pack(
        len(index) | flag, zlib.crc32(field, zlib.crc32(index, seal)), _END
    )


def _range(first: int, count: int, word: str) -> str:
    """Numbers as people count them: "image 5", "images 1 to 256"."""
    return f"{word} {first + 1}" if count == 1 else f"{word}s {first + 1} to {first + count}"


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


# Writing


class Writer:
    """Writes a `.pcdm` file that gets its name when the `with` block ends well
    (`outputs.whole_file`).

    path: where the file will be; its folder is made where it is missing. A file of that name stays
    as it is until the end, and for good if the block ends with any exception. What is written is
    gone then too, but for a process that is killed: that leaves a file named .NAME.RANDOM.
    header: a mapping that JSON can hold, best a flat and short one. ValueError where it is not.
    check: called with the path of the whole file before it gets its name; what it raises keeps it
        from getting it.

    A chunk is held in memory only while it is written. The names of all images are kept until the
    end, to find double ones, and two numbers a chunk.
    """

    def __init__(
        self,
        path: Path | str,
        header: Mapping[str, Any],
        check: Callable[[Path], None] | None = None,
    ) -> None:
        self.path, self._check = Path(path), check
        self._header = _pack_header(header)
        self._begin(VERSIONS[0])
        self._file: BinaryIO | None = None
        self._output: contextlib.AbstractContextManager[BinaryIO] | None = None
        self._names: set[str] = set()
        self._in_pieces = ""  # the image whose pieces are being added
        self._chunks: list[tuple[int, int]] = []
        self._images = 0
        self._written = 0
        self._broken = False

    def _begin(self, version: int) -> None:
        self._version, body = version, self._header
        start = PREAMBLE.pack(MAGIC, version, len(body), 0)[:-4]
        self._seal = zlib.crc32(body, zlib.crc32(start))
        self._start = start + struct.pack("<I", self._seal) + body

    @property
    def bytes_written(self) -> int:
        """Bytes so far, the header among them; after the `with` block, the size of the file."""
        return self._written

    def __enter__(self) -> Writer:
        if self._output is not None:
            raise ValueError(f"{self.path}: a Writer writes one file once; make another one")
        self._output = outputs.whole_file(self.path)
        self._file = self._output.__enter__()
        try:
            self._file.write(self._start)
        except BaseException:
            self._end(*sys.exc_info())
            raise
        self._written = len(self._start)
        return self

    def add_chunk(self, entries: Sequence[Entry], payload: bytes) -> int:
        """Append the images of one chunk and their coded bytes; returns the bytes that the chunk
        takes, everything in it.

        The first pieces make the file one of version 2. ValueError, with nothing written, where
        there is no image, a name was there before, or an entry cannot be stored.
        """
        if self._file is None:
            raise ValueError(f"{self.path}: chunks are added within the `with` block of a Writer")
        if not 1 <= len(entries) <= MAX_CHUNK_IMAGES:
            raise ValueError(f"a chunk has from 1 to {MAX_CHUNK_IMAGES} images, not {len(entries)}")
        if len(self._chunks) == MAX_CHUNKS:
            raise ValueError(
                f"a file has at most {MAX_CHUNKS} chunks: put more images into each, or use "
                f"another file"
            )
        pairs = [_checked(entry) for entry in entries]
        names: set[str] = set()
        in_pieces = self._in_pieces
        for entry, _ in pairs:
            if entry.piece and entry.name == in_pieces:
                continue
            in_pieces = entry.name if entry.piece else ""
            if entry.name in self._names or entry.name in names:
                raise ValueError(
                    f"two images are named {entry.name!r}: every name in a file must differ from "
                    f"the others; rename one"
                )
            names.add(entry.name)
        body = varints([len(self._chunks), self._images, len(pairs)]) + _pack_entries(
            [entry for entry, _ in pairs], [text for _, text in pairs]
        )
        if in_pieces and self._version == 1:
            self._seal_anew(2)
        view = memoryview(payload).cast("B")
        fields = _CHUNK.pack(_MARKER, len(body), len(view), zlib.crc32(view), 0)[:-4]
        head = fields + struct.pack("<I", zlib.crc32(body, zlib.crc32(fields, self._seal))) + body
        length = len(head) + len(view)
        # a caller may catch what happens from here on and go on
        self._broken, broken = True, self._broken
        self._file.write(head)
        self._file.write(view)
        self._names |= names
        self._in_pieces = in_pieces
        self._chunks.append((length, len(pairs)))
        self._images += len(pairs)
        self._written += length
        self._broken = broken
        return length

    def _seal_anew(self, version: int) -> None:
        """Make what is written so far the beginning of a file of that version, in its place: every
        chunk has another checksum, and nothing else changes."""
        assert self._file is not None
        self._begin(version)
        self._broken = True  # until all are changed
        self._file.flush()
        offset = len(self._start)
        with open(self._file.name, "rb") as written:
            for length, _ in self._chunks:
                written.seek(offset)
                fields = written.read(CHUNK_BYTES)
                body = written.read(_CHUNK.unpack(fields)[1])
                crc = zlib.crc32(body, zlib.crc32(fields[:-4], self._seal))
                self._file.seek(offset + CHUNK_BYTES - 4)
                self._file.write(struct.pack("<I", crc))
                offset += length
        self._file.seek(0)
        self._file.write(self._start)
        self._file.seek(0, os.SEEK_END)
        self._broken = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                self._finish()
            except BaseException:
                self._end(*sys.exc_info())
                raise
        self._end(kind, error, trace)

    def _finish(self) -> None:
        assert self._file is not None
        if self._broken:
            raise OSError(
                f"{self.path} was not written: an error while a chunk was being written left it "
                f"incomplete"
            )
        if not self._chunks:
            raise ValueError(f"{self.path} was not written: it would hold no image; add a chunk")
        index = _pack_index(self._chunks, self._seal)
        self._file.write(index)
        self._written += len(index)
        if self._check is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._check(Path(self._file.name))

    def _end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the file its name, or remove it where there is an error."""
        assert self._output is not None
        self._file = None
        self._output.__exit__(kind, error, trace)


# Reading


class Reader:
    """Reads a `.pcdm` file, chunk by chunk in any order, from one thread at a time.

    path: the file, as given. Its header and index are read and verified at once; DamagedFile where
    it has no sound header, UnknownVersion where that is of another version. A damaged index is not
    an error: the chunks are then found by walking, and `damage` says so.

    header: the dict that the writer was given.
    version: of the format; 2 where images lie in pieces.
    chunks: the chunks that can be reached. What is in them is verified only when it is read.
    num_images: images in the file. Without a sound index those as far as the last chunk found, lost
        ones before it included.
    damage: one line for everything that is wrong with the file as a whole, about 100 at most; ()
        where nothing is. It says nothing about what is in chunks.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        facts = os.stat(self.path)
        if not stat.S_ISREG(facts.st_mode):  # to open a pipe might wait for ever
            raise DamagedFile(f"{self.path} is no .pcdm file: it is a folder, a pipe or a device")
        self._file = open(self.path, "rb")
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self.header: dict[str, Any]
            self.header, self.version, self._seal, self._start = self._read_header()
            self._word = "image" if self.version == 1 else "piece"
            self.damage: tuple[str, ...] = ()
            self.chunks: tuple[ChunkInfo, ...] = ()
            self.num_images = 0
            self._index_bytes = 0
            self._total = ""
            self._cut: _Head | None = None  # a last chunk of which only the beginning is there
            try:
                self._use(self._index_before(self._size), self._size)
            except _Unsound as problem:
                self._walk(str(problem))
            chunks: tuple[ChunkInfo, ...] = self.chunks
            self._by_number = {chunk.number: chunk for chunk in chunks}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read after that but the attributes."""
        self._file.close()

    def entries(self, number: int) -> list[Entry]:
        """The images of that chunk, of which only the chunk header is read and verified;
        DamagedFile naming its images by their numbers."""
        return self._head(number)[1]

    def chunk(self, number: int) -> tuple[list[Entry], bytes]:
        """The images of that chunk and its payload, verified.

        DamagedFile naming the images by name where only the payload is damaged, else by number;
        IndexError where the file never had such a chunk.
        """
        head, entries = self._head(number)
        payload = self._read(head.payload, head.payload_length)
        if zlib.crc32(payload) != head.payload_crc:
            names = [repr(entry.name) for entry in entries]
            listed = ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}"
            raise DamagedFile(
                f"{self.path}: the payload of {self._describe(head.info)} is damaged, and "
                f"{listed} cannot be decoded: {_COPY}"
            )
        return entries, payload

    def partial(self) -> tuple[list[Entry], bytes] | None:
        """The images of a last chunk of which the file has only the beginning, and what is there of
        its payload; None where there is no such chunk. No checksum covers a beginning."""
        if self._cut is None:
            return None
        try:
            entries = _unpack_entries(self._cut.columns, self._cut.info.images, self.version)
        except _Unsound:
            return None
        there = min(self._cut.payload_length, self._size - self._cut.payload)
        return entries, self._read(self._cut.payload, there)

    def find(self, name: str) -> int:
        """The number of the chunk that holds the image of that name; KeyError where no chunk header
        that can be read has it.

        Every call reads chunk headers from the first on and keeps nothing: for many names, go
        through `entries` once instead.
        """
        unread = 0
        for info in self.chunks:
            try:
                if any(entry.name == name for entry in self.entries(info.number)):
                    return info.number
            except DamagedFile:
                unread += 1
        message = f"{self.path} has no image named {name!r}"
        if unread or self.damage:
            message += (
                f" in what can be read of it; {_count(unread, 'chunk header')} could not be read"
                + "".join(f"; {line}" for line in self.damage[:3])
            )
        raise KeyError(message)

    def layout(self) -> dict[str, int]:
        """Bytes of the file by what they hold: "header" (preamble too), "chunk headers", "payloads"
        and "index" (trailer too); their sum is its size.

        A damaged file has "damaged" as well: bytes that no sound header tells apart.
        """
        result = {
            "header": self._start,
            "chunk headers": 0,
            "payloads": 0,
            "index": self._index_bytes,
        }
        for info in self.chunks:
            with contextlib.suppress(DamagedFile):
                head = self._head(info.number)[0]
                result["chunk headers"] += head.payload - info.offset
                result["payloads"] += head.payload_length
        rest = self._size - sum(result.values())
        return {**result, "damaged": rest} if rest else result

    def _read(self, offset: int, length: int) -> bytes:
        """Bytes that lie within the file."""
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) != length:
            raise DamagedFile(
                f"{self.path} became shorter while it was read: read it again when nothing writes "
                f"to it"
            )
        return data

    def _read_header(self) -> tuple[dict[str, Any], int, int, int]:
        """The header, the version and the seal of the file, and the offset behind the header."""
        start = self._read(0, min(self._size, PREAMBLE_BYTES))
        if not start.startswith(MAGIC):
            if start and MAGIC.startswith(start):
                raise DamagedFile(
                    f"{self.path} is cut short: it has only {_count(len(start), 'byte')}, and not "
                    f"even a header; {_COPY}"
                )
            if b"PCDM" in start:
                raise DamagedFile(
                    f"{self.path} is no .pcdm file any more: its first bytes were changed, as by "
                    f"a transfer in text mode; transfer it as binary"
                )
            raise DamagedFile(
                f"{self.path} is no .pcdm file: "
                + ("it does not begin as one" if start else "it is empty")
            )
        if len(start) < PREAMBLE_BYTES:
            raise DamagedFile(
                f"{self.path} is cut short: it has only {len(start)} bytes, and no header; {_COPY}"
            )
        _, version, length, seal = PREAMBLE.unpack(start)
        what = (
            f"{self.path}: the header at the start is damaged or cut short, and without it "
            f"nothing can be decoded"
        )
        if length > min(MAX_HEADER, self._size - PREAMBLE_BYTES):
            raise DamagedFile(f"{what} (it would have {length} bytes): {_COPY}")
        body = self._read(PREAMBLE_BYTES, length)
        if zlib.crc32(body, zlib.crc32(start[:-4])) != seal:
            raise DamagedFile(f"{what} (its checksum is wrong): {_COPY}")
        if version not in VERSIONS:
            raise UnknownVersion(
                f"{self.path} has format version {version}, and this program reads versions "
                f"{VERSIONS[0]} to {VERSIONS[-1]}: use the pcdm_lib that wrote it"
            )
        try:
            return _unpack_header(body), version, seal, PREAMBLE_BYTES + length
        except _Unsound as problem:
            raise DamagedFile(f"{what} ({problem}): {_COPY}") from None

    def _index_before(self, end: int, budget: _Budget | None = None) -> tuple[list[ChunkInfo], int]:
        """The chunks that the index lists whose trailer ends there, and the bytes of both; _Unsound
        where there is none that fits the file."""
        cut = "the index at the end is damaged, or the file was cut short"
        if end - TRAILER_BYTES < self._start:
            raise _Unsound(cut)
        trailer = self._read(end - TRAILER_BYTES, TRAILER_BYTES)
        field, crc, mark = _TRAILER.unpack(trailer)
        length = field & ~_DEFLATED
        span = end - TRAILER_BYTES - length - self._start
        if mark != _END or length > _MAX_INDEX or span < _MIN_CHUNK:
            raise _Unsound(cut)
        if budget:
            budget.spend(length)
        index = self._read(self._start + span, length)
        if zlib.crc32(trailer[:4], zlib.crc32(index, self._seal)) != crc:
            raise _Unsound(cut)
        most = min(MAX_CHUNKS, span // _MIN_CHUNK)
        if field & _DEFLATED:
            index, rest = _inflate(index, 5 + 20 * most)
            if rest:
                raise _Unsound("more follows the index within its own length")
        if budget:
            # numbers are read one by one, which takes longer than a checksum
            budget.spend(16 * len(index))
        count, position = _varint(index, 0)
        if not 1 <= count <= most:
            raise _Unsound(
                f"the index at the end lists {count} chunks, and {span} bytes hold from 1 to {most}"
            )
        numbers = []
        for _ in range(2 * count):
            number, position = _varint(index, position)
            numbers.append(number)
        if position != len(index):
            raise _Unsound("more follows the chunks in the index at the end")
        chunks = []
        offset, first = self._start, 0
        for number, (size, images) in enumerate(zip(numbers[:count], numbers[count:], strict=True)):
            if not 1 <= images <= min(MAX_CHUNK_IMAGES, (size - _MIN_CHUNK) // 4 + 1):
                raise _Unsound(
                    f"the index at the end lists an impossible chunk ({images} images in {size} "
                    f"bytes)"
                )
            chunks.append(ChunkInfo(number, offset, size, first, images))
            offset, first = offset + size, first + images
        if offset != self._start + span:
            raise _Unsound(
                f"the chunks that the index at the end lists take {offset - self._start} bytes, "
                f"and {span} are there"
            )
        return chunks, TRAILER_BYTES + length

    def _head_at(self, offset: int, budget: _Budget | None = None) -> _Head:
        """The chunk header at that offset; _Unsound where there is none. Its payload may end behind
        the file."""
        if self._size - offset < _MIN_CHUNK:
            raise _Unsound("too few bytes are left")
        fields = self._read(offset, CHUNK_BYTES)
        mark, length, payload_length, payload_crc, crc = _CHUNK.unpack(fields)
        if mark != _MARKER or length > min(_MAX_CHUNK_HEADER, self._size - offset - CHUNK_BYTES):
            raise _Unsound("no chunk begins there")
        if budget:
            budget.spend(length)
        body = self._read(offset + CHUNK_BYTES, length)
        if zlib.crc32(body, zlib.crc32(fields[:-4], self._seal)) != crc:
            raise _Unsound("its checksum is wrong")
        number, position = _varint(body, 0)
        first, position = _varint(body, position)
        images, position = _varint(body, position)
        if not 1 <= images <= min(MAX_CHUNK_IMAGES, (length - position) // 4):
            raise _Unsound(f"{images} images do not fit into {length} bytes")
        payload = offset + CHUNK_BYTES + length
        info = ChunkInfo(number, offset, payload + payload_length - offset, first, images)
        return _Head(info, body[position:], payload, payload_length, payload_crc)

    def _head(self, number: int) -> tuple[_Head, list[Entry]]:
        """The verified header of that chunk and its entries."""
        info = self._by_number.get(number)
        if info is None:
            if self.chunks and 0 <= number < self.chunks[-1].number:
                raise DamagedFile(
                    f"{self.path}: chunk {number + 1} was not found, and its images cannot be "
                    f"decoded ({'; '.join(self.damage[:3])}): {_COPY}"
                )
            raise IndexError(
                f"{self.path} has no chunk with the number {number} (from 0): those in `chunks` "
                f"can be read"
            )
        try:
            head = self._head_at(info.offset)
            if head.info != info:
                raise _Unsound("it contradicts the index")
            return head, _unpack_entries(head.columns, info.images, self.version)
        except _Unsound as problem:
            raise DamagedFile(
                f"{self.path}: the header of {self._describe(info)} is damaged ({problem}), and "
                f"they cannot be decoded: {_COPY}"
            ) from None

    def _describe(self, info: ChunkInfo) -> str:
        return (
            f"chunk {info.number + 1} with {_range(info.first_image, info.images, self._word)} of "
            f"{self._total}"
        )

    def _use(self, index: tuple[list[ChunkInfo], int], end: int) -> None:
        """Take an index whose trailer ends there for the truth."""
        chunks, self._index_bytes = index
        self.chunks = tuple(chunks)
        self.num_images = chunks[-1].first_image + chunks[-1].images
        self._total = str(self.num_images)
        if end < self._size:
            extra = _count(self._size - end, "byte")
            self.damage = (
                f"{extra} too many at the end, from byte {end} on: something was appended to the "
                f"file; its images are not affected",
            )

    def _walk(self, problem: str) -> None:
        """Find chunks without the index, each behind the one before; where that fails, by their
        markers."""
        budget = _Budget(self._size)
        found: list[_Head] = []
        notes: list[str] = []
        position, number, image = self._start, 0, 0  # of the next chunk, if all is well
        while position < self._size:
            resume, cut = position, None
            with contextlib.suppress(_Unsound):
                head = self._head_at(position)
                if self._follows(head.info, number, image):
                    number, image = head.info.number + 1, head.info.first_image + head.info.images
                    if head.info.length <= self._size - position:
                        found.append(head)
                        position += head.info.length
                        continue
                    cut, resume = head, head.payload
            try:
                if (
                    cut is None
                    and found
                    and found[-1].info.offset + found[-1].info.length == position
                    and not self._payload_sound(found[-1], budget)
                ):
                    # bytes may be missing in it, so that the next chunk lies before its place
                    resume = found[-1].payload
                result = self._search(resume, number, image, budget)
            except _GivenUp:
                result = None
                notes.append(
                    "the search for more chunks was given up: the file has too many false ones"
                )
            if result is not None and not isinstance(result, _Head):
                self._use(*result)
                return
            if result is None:
                self._cut = cut
            if cut is None and found and result is not None and result.info.offset < position:
                cut = found.pop()
            if cut is not None:
                notes.append(
                    f"chunk {cut.info.number + 1} with "
                    f"{_range(cut.info.first_image, cut.info.images, self._word)} is not whole"
                )
            if result is None:
                if cut is None:
                    notes.append(
                        f"the last {_count(self._size - position, 'byte')}, from byte {position} "
                        f"on, cannot be read: a damaged index, or more chunks"
                    )
                break
            lost, images = result.info.number - number, result.info.first_image - image
            if lost:
                notes.append(
                    f"{_range(number, lost, 'chunk')} with {_range(image, images, self._word)} "
                    f"cannot be found"
                )
            elif cut is None:
                notes.append(f"bytes {position} to {result.info.offset - 1} belong to no chunk")
            position, number, image = (
                result.info.offset,
                result.info.number,
                result.info.first_image,
            )
        self.chunks = tuple(head.info for head in found)
        self.num_images = image
        self._total = f"at least {image}"
        held = _count(sum(info.images for info in self.chunks), self._word)
        self.damage = (
            f"{problem}: found {_count(len(found), 'whole chunk')} with {held} by walking",
            *notes[:_MAX_NOTES],
        )
        if len(notes) > _MAX_NOTES:
            self.damage += (f"{len(notes) - _MAX_NOTES} more such places",)

    @staticmethod
    def _follows(info: ChunkInfo, number: int, image: int) -> bool:
        """Whether a chunk may come where that chunk and image are next: it is that one, or a later
        one behind others that are lost."""
        lost = info.number - number
        return (
            info.first_image == image
            if lost == 0
            else lost > 0 and info.first_image - image >= lost
        )

    def _payload_sound(self, head: _Head, budget: _Budget) -> bool:
        budget.spend(head.payload_length)
        crc = 0
        for offset in range(head.payload, head.payload + head.payload_length, _BLOCK):
            crc = zlib.crc32(
                self._read(offset, min(_BLOCK, head.payload + head.payload_length - offset)), crc
            )
        return crc == head.payload_crc

    def _search(
        self, start: int, number: int, image: int, budget: _Budget
    ) -> _Head | tuple[tuple[list[ChunkInfo], int], int] | None:
        """The first thing from `start` on that is sound: a chunk header that may come next, or an
        index and the offset behind it."""
        for offset, mark in self._marks(start):
            budget.spend(4096)  # by chance there is one in 2 GiB
            with contextlib.suppress(_Unsound):
                if mark == _END:
                    return self._index_before(offset + len(_END), budget), offset + len(_END)
                head = self._head_at(offset, budget)
                if self._follows(head.info, number, image):
                    return head
        return None

    def _marks(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Where markers and ends stand, from `start` on, and which."""
        block, tail = 4096, b""  # small at first: a file may have many gaps, and most are short
        while start < self._size:
            data = tail + self._read(start, min(block, self._size - start))
            for found in _MARKS.finditer(data):
                yield start - len(tail) + found.start(), found.group()
            start += len(data) - len(tail)
            tail = data[-3:]
            block = min(2 * block, _BLOCK)
