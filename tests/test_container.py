"""The `.pcdm` container: every byte of the format, what is read back, and what is said and saved
when a file is damaged, cut, hostile or half written."""

from __future__ import annotations

import json
import random
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcdm_lib.coding import container
from pcdm_lib.coding.container import (
    CHUNK_BYTES,
    PREAMBLE_BYTES,
    TRAILER_BYTES,
    ChunkInfo,
    DamagedFile,
    Entry,
    Piece,
    Reader,
    UnknownVersion,
    Writer,
)

Chunk = tuple[list[Entry], bytes]
HEADER = {"model": "tiny", "weights": "0f" * 8, "steps": 3}
SAMPLE: list[Chunk] = [
    ([Entry("a-09.png", (3, 32, 32), 1), Entry("a-10.png", (3, 32, 32), 2)], b"first payload"),
    ([Entry("über/雪.png", (1, 1, 300), 3)], b"second"),
    ([Entry(f"b{i}.png", (3, 8, 8), 4 + i) for i in range(4)], bytes(range(20))),
]


def write(path: Path, chunks: Sequence[Chunk], header: Mapping[str, Any] = HEADER) -> bytes:
    with Writer(path, header) as writer:
        for entries, payload in chunks:
            writer.add_chunk(entries, payload)
    return path.read_bytes()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, tuple[ChunkInfo, ...]]:
    """The bytes of a file of three chunks, and where these are."""
    path = tmp_path_factory.mktemp("sample") / "sample.pcdm"
    data = write(path, SAMPLE)
    with Reader(path) as reader:
        return data, reader.chunks


def read_some(
    path: Path, originals: Sequence[Chunk] = SAMPLE
) -> tuple[set[int], tuple[str, ...]] | None:
    """The chunks that can be read, each compared with what was written, and the damage; None where
    the file cannot be opened for damage."""
    try:
        reader = Reader(path)
    except (DamagedFile, UnknownVersion) as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None
    good = set()
    with reader:
        assert sum(reader.layout().values()) == path.stat().st_size
        for info in reader.chunks:
            try:
                assert reader.entries(info.number) == originals[info.number][0]
                assert reader.chunk(info.number) == originals[info.number]
                good.add(info.number)
            except DamagedFile as error:
                assert (
                    str(path) in str(error)
                    and f"chunk {info.number + 1} " in str(error)
                    and "\n" not in str(error)
                )
        return good, reader.damage


# The format


GOLDEN = bytes.fromhex(
    "8f5043444d0d0a1a 0100 1c000000 b0fe4689"  # preamble
    "ab56cacd4f49cd51b2522ac9ccab54d2512a2e492d2856b232ae0500"
    "8e43484b 1b000000 0700000000000000 156a2c42 5943b28e"  # chunk of two images
    "00 00 02 4bd435b0d42bc84b6760606256500000 00000000 04030201 7061796c6f6164"
    "8e43484b 18000000 0000000000000000 00000000 71be62a2"  # chunk of one image and no payload
    "01 02 01 3bbc2729b548ffe5ec550c8c8c8c6b9800 ffffffff"
    "02 3a 30 02 01"  # index: two chunks of 58 and 48 bytes, of 2 and 1 images
    "05000000 f06d068f 8e454e44"
)
GOLDEN_HEADER = {"model": "tiny", "steps": 3}
GOLDEN_CHUNKS: list[Chunk] = [
    ([Entry("a-09.png", (3, 32, 32), 0), Entry("a-10.png", (3, 32, 32), 0x01020304)], b"payload"),
    ([Entry("über/雪", (1, 1, 300), 0xFFFFFFFF)], b""),
]


def test_golden_file_reads(tmp_path: Path) -> None:
    """What version 1 wrote is read by every later reader of version 1."""
    path = tmp_path / "golden.pcdm"
    path.write_bytes(GOLDEN)
    with Reader(path) as reader:
        assert reader.header == GOLDEN_HEADER and reader.damage == () and reader.num_images == 3
        assert reader.chunks == (ChunkInfo(0, 46, 58, 0, 2), ChunkInfo(1, 104, 48, 2, 1))
        assert [reader.chunk(i) for i in range(2)] == GOLDEN_CHUNKS
        assert reader.layout() == {"header": 46, "chunk headers": 99, "payloads": 7, "index": 17}


@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="zlib-ng may deflate to other bytes")
def test_golden_file_is_written(tmp_path: Path) -> None:
    assert write(tmp_path / "golden.pcdm", GOLDEN_CHUNKS, GOLDEN_HEADER).hex() == GOLDEN.hex()


def test_golden_file_by_hand() -> None:
    """The two chunk columns and the checksums of the golden file, as the module's description says,
    without its code."""
    assert zlib.decompress(GOLDEN[18:46], -15) == b'{"model":"tiny","steps":3}'
    seal = zlib.crc32(GOLDEN[:14] + GOLDEN[18:46])
    assert struct.unpack("<I", GOLDEN[14:18])[0] == seal
    assert zlib.crc32(GOLDEN[46:66] + GOLDEN[70:97], seal) == struct.unpack("<I", GOLDEN[66:70])[0]
    assert zlib.decompress(GOLDEN[73:89], -15) == b"a-09.png\0\0" + bytes([2, 3, 32, 32])
    assert zlib.decompress(GOLDEN[131:148], -15) == "über/雪\0".encode() + bytes([1, 1, 1, 0xAC, 2])
    assert zlib.crc32(b"payload") == struct.unpack("<I", GOLDEN[62:66])[0]
    assert zlib.crc32(GOLDEN[152:161], seal) == struct.unpack("<I", GOLDEN[161:165])[0]
    assert (PREAMBLE_BYTES, CHUNK_BYTES, TRAILER_BYTES) == (18, 24, 12)


def test_bytes_per_image(tmp_path: Path) -> None:
    """600 names that count up and equal shapes: beyond its checksum an image takes less than a bit,
    chunks included."""
    chunks = [
        (
            [
                Entry(f"test-{i:05d}.png", (3, 32, 32), i * 7919)
                for i in range(start, min(start + 256, 600))
            ],
            b"x" * 100,
        )
        for start in (0, 256, 512)
    ]
    with Writer(tmp_path / "x.pcdm", HEADER) as writer:
        start = writer.bytes_written
        taken = [writer.add_chunk(*chunk) for chunk in chunks]
        assert writer.bytes_written == start + sum(taken)
    assert writer.bytes_written == (tmp_path / "x.pcdm").stat().st_size
    with Reader(tmp_path / "x.pcdm") as reader:
        layout = reader.layout()
        assert [info.length for info in reader.chunks] == taken and [
            reader.chunk(i) for i in range(3)
        ] == chunks
        assert sum(layout.values()) == writer.bytes_written and layout["header"] == start
    assert layout["chunk headers"] < 600 * 4 + 3 * 60 and layout["index"] < 30


NAMES = st.one_of(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
    ),
    st.builds(
        "{}{:0{}d}{}".format,
        st.sampled_from(["", "a", "x.", "9"]),
        st.integers(0, 120),
        st.integers(1, 3),
        st.sampled_from(["", ".png", "b", ".1"]),
    ),
)
SHAPES = st.one_of(
    st.just((3, 32, 32)),
    st.tuples(st.sampled_from([1, 3]), st.integers(1, 65535), st.integers(1, 65535)),
)
ARCHIVES = st.lists(
    st.tuples(NAMES, SHAPES, st.integers(0, 2**32 - 1), st.binary(max_size=30), st.booleans()),
    min_size=1,
    max_size=30,
    unique_by=lambda item: item[0],
)


def split(items: Sequence[tuple[str, tuple[int, int, int], int, bytes, bool]]) -> list[Chunk]:
    """Chunks that end at every image whose last part is true."""
    chunks: list[Chunk] = []
    fresh = True
    for name, shape, checksum, payload, ends in items:
        if fresh:
            chunks.append(([], payload))
        chunks[-1][0].append(Entry(name, shape, checksum))
        fresh = ends
    return chunks


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ARCHIVES,
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=9)),
        max_size=4,
    ),
    st.booleans(),
)
def test_round_trip(
    tmp_path: Path, items: list[Any], header: dict[str, Any], names_sorted: bool
) -> None:
    chunks = split(sorted(items) if names_sorted else items)
    path = tmp_path / "x.pcdm"
    try:
        json.dumps(header, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueError, match="header"):
            Writer(path, header)
        return
    data = write(path, chunks, header)
    with Reader(path) as reader:
        assert reader.header == header and reader.damage == () and reader.num_images == len(items)
        assert [reader.chunk(info.number) for info in reader.chunks] == chunks
        assert [info.images for info in reader.chunks] == [len(entries) for entries, _ in chunks]
        assert sum(reader.layout().values()) == len(data)
        for number, (entries, _) in enumerate(chunks):
            assert all(reader.find(entry.name) == number for entry in entries)


# Images in pieces


PIECES: list[Chunk] = [
    *SAMPLE[:1],
    ([Entry("wide.png", (3, 4, 65535), 1, Piece(0, 0, 7, 70000))], bytes(3 << 20)),
    ([Entry("wide.png", (3, 4, 4465), 2, Piece(0, 65535, 7, 70000))], b"right"),
    (
        [
            Entry("wide.png", (3, 3, 65535), 3, Piece(4, 0, 7, 70000)),
            Entry("wide.png", (3, 3, 4465), 4, Piece(4, 65535, 7, 70000)),
        ],
        b"below",
    ),
    ([Entry("next.png", (1, 2, 2), 5)], b"whole"),
    ([Entry("tall.png", (1, 9, 1), 6, Piece(0, 0, 2**31 - 1, 1))], b""),
]


def test_images_in_pieces_make_a_file_of_version_2(tmp_path: Path) -> None:
    data = write(tmp_path / "x.pcdm", PIECES)
    assert len(list(tmp_path.iterdir())) == 1
    with Reader(tmp_path / "x.pcdm") as reader:
        assert reader.version == 2 and reader.damage == () and reader.num_images == 8
        assert [reader.chunk(info.number) for info in reader.chunks] == PIECES
        assert sum(reader.layout().values()) == len(data)
        assert reader.find("wide.png") == 1
    # what stood there before the first piece is a version 1 file's, but for the checksums
    assert data[8] == 2 and write(tmp_path / "y.pcdm", SAMPLE[:1])[8] == 1


def test_every_flipped_byte_of_pieces(tmp_path: Path) -> None:
    chunks = [(entries, payload[:20]) for entries, payload in PIECES]
    path, data = tmp_path / "x.pcdm", write(tmp_path / "x.pcdm", chunks)
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :])
        found = read_some(path, chunks)
        assert found is None or len(found[0]) >= len(chunks) - 1


@pytest.mark.parametrize(
    "chunks, message",
    [
        ([[("a", (1, 2, 2), Piece(0, 0, 2, 2))]], "does not lie within"),
        ([[("a", (1, 2, 2), Piece(3, 0, 4, 2))]], "does not lie within"),
        ([[("a", (1, 2, 2), Piece(-1, 0, 4, 2))]], "does not lie within"),
        ([[("a", (1, 2, 2), Piece(0, 0, 2**31, 2))]], "does not lie within"),
        ([[("a", (1, 2, 2), Piece(0, 0, 4, 2)), ("b", (1, 2, 2), None)]], "not both"),
        ([[("a", (1, 2, 2), None)], [("a", (1, 2, 2), Piece(0, 0, 4, 2))]], "two images"),
        ([[("a", (1, 2, 2), Piece(0, 0, 4, 2))], [("a", (1, 2, 2), None)]], "two images"),
        (
            [
                [(name, (1, 2, 2), Piece(top, 0, 4, 2))]
                for name, top in (("a", 0), ("b", 0), ("a", 2))
            ],
            "two images",
        ),
    ],
)
def test_refused_pieces(tmp_path: Path, chunks: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), Writer(tmp_path / "x.pcdm", HEADER) as writer:
        for entries in chunks:
            writer.add_chunk([Entry(name, shape, 0, piece) for name, shape, piece in entries], b"")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a9", "a10"),
        ("a-099.png", "a-100.png"),
        ("7", "8"),
        ("a1b2c.jp2", "a1b3c.jp2"),
        (".5", None),
        ("x", None),
        ("x.1", None),
        ("9" * 18, "1" + "0" * 18),
        ("9" * 19, None),
        ("1\n.png", "2\n.png"),
        ("٣.png", None),
    ],
)
def test_counting_names(name: str, expected: str | None) -> None:
    assert container._next_name(name) == expected


def test_many_chunks(tmp_path: Path) -> None:
    """An index that is shorter deflated, and chunks read in any order."""
    chunks = [([Entry(f"{i}", (1, 1, 1), i)], b"%03d" % i) for i in range(300)]
    write(tmp_path / "x.pcdm", chunks)
    with Reader(tmp_path / "x.pcdm") as reader:
        order = random.Random(0).sample(range(300), 300)
        assert [reader.chunk(i) for i in order] == [chunks[i] for i in order]
        assert reader.layout()["index"] < 100
        with pytest.raises(IndexError, match="no chunk with the number 300"):
            reader.chunk(300)
        with pytest.raises(KeyError, match="no image named '300'"):
            reader.find("300")


def test_payload_of_other_types(tmp_path: Path) -> None:
    with Writer(str(tmp_path / "x.pcdm"), HEADER) as writer:
        writer.add_chunk([Entry("a", (1, 1, 1), 0)], bytearray(b"abcd"))
        writer.add_chunk([Entry("b", (1, 1, 1), 0)], memoryview(struct.pack("<2I", 1, 2)).cast("I"))
    with Reader(str(tmp_path / "x.pcdm")) as reader:
        assert [reader.chunk(i)[1] for i in range(2)] == [b"abcd", b"\1\0\0\0\2\0\0\0"]


# Damage


def test_every_flipped_bit(tmp_path: Path, sample: tuple[bytes, tuple[ChunkInfo, ...]]) -> None:
    """No bit can change without being noticed, and it costs no chunk but its own."""
    data, chunks = sample
    path = tmp_path / "x.pcdm"
    for offset in range(len(data)):
        touched = {
            info.number for info in chunks if info.offset <= offset < info.offset + info.length
        }
        for bit in range(8):
            path.write_bytes(data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :])
            result = read_some(path)
            if offset < chunks[0].offset:
                assert result is None, (offset, bit)
            else:
                assert (
                    result is not None
                    and result[0] == {0, 1, 2} - touched
                    and bool(result[1]) == (not touched)
                ), (offset, bit, result)


def test_every_flipped_bit_without_index(
    tmp_path: Path, sample: tuple[bytes, tuple[ChunkInfo, ...]]
) -> None:
    """The same where the chunks have to be found by walking and searching."""
    data, chunks = sample
    data = data[: chunks[-1].offset + chunks[-1].length + 2]
    path = tmp_path / "x.pcdm"
    for offset in range(chunks[0].offset, len(data)):
        touched = {
            info.number for info in chunks if info.offset <= offset < info.offset + info.length
        }
        for bit in range(8):
            path.write_bytes(data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :])
            result = read_some(path)
            assert result is not None and result[0] == {0, 1, 2} - touched and result[1], (
                offset,
                bit,
                result,
            )


def test_every_length(tmp_path: Path, sample: tuple[bytes, tuple[ChunkInfo, ...]]) -> None:
    """A file cut short gives the chunks that are whole in it."""
    data, chunks = sample
    path = tmp_path / "x.pcdm"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        result = read_some(path)
        if length < chunks[0].offset:
            assert result is None
        else:
            assert result is not None and result[0] == {
                info.number for info in chunks if info.offset + info.length <= length
            }
            assert (
                "cut short" in result[1][0]
                and f"found {len(result[0])} whole chunk" in result[1][0]
            )


def test_every_piece_missing_doubled_or_strange(
    tmp_path: Path, sample: tuple[bytes, tuple[ChunkInfo, ...]]
) -> None:
    """Bytes lost, repeated or put in anywhere: chunks on both sides of the place are found."""
    data, chunks = sample
    path = tmp_path / "x.pcdm"
    for offset in range(chunks[0].offset, len(data) - 40, 3):
        for size in (1, 7, 40):
            lost = {
                info.number
                for info in chunks
                if info.offset < offset + size and offset < info.offset + info.length
            }
            split_ = {
                info.number for info in chunks if info.offset < offset < info.offset + info.length
            }
            pieces = [
                (data[:offset] + data[offset + size :], lost),
                (
                    data[: offset + size] + data[offset:],
                    {i.number for i in chunks if i.offset < offset + size < i.offset + i.length},
                ),
                (data[:offset] + b"?" * size + data[offset:], split_),
            ]
            for i, (damaged, touched) in enumerate(pieces):
                path.write_bytes(damaged)
                result = read_some(path)
                assert result is not None and result[0] >= {0, 1, 2} - touched and result[1], (
                    offset,
                    size,
                    i,
                    result,
                    touched,
                )


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 60), st.binary(max_size=60)),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_random_damage(
    tmp_path: Path,
    sample: tuple[bytes, tuple[ChunkInfo, ...]],
    cuts: list[tuple[int, int, bytes]],
    keep_header: bool,
) -> None:
    """Whatever is put in place of whatever: an error of the two kinds, or chunks that are exactly
    what was written."""
    data, chunks = sample
    for offset, size, new in cuts:
        offset = max(offset, chunks[0].offset) if keep_header else offset
        data = data[:offset] + new + data[offset + size :]
    path = tmp_path / "x.pcdm"
    path.write_bytes(data)
    result = read_some(path)
    assert result is None or result[0] <= {0, 1, 2}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", GOLDEN[:8], GOLDEN[:10], GOLDEN[:18], GOLDEN[:46], GOLDEN[:50]]),
)
def test_garbage(tmp_path: Path, garbage: bytes, start: bytes) -> None:
    path = tmp_path / "x.pcdm"
    path.write_bytes(start + garbage)
    result = read_some(path, GOLDEN_CHUNKS)
    assert result is None if len(start) < 46 else result == (set(), result[1]) and result[1]


def test_messages(tmp_path: Path) -> None:
    """Who reads an error learns which file, which chunk and which images, by name where the names
    are known."""
    path = tmp_path / "x.pcdm"
    chunks = [
        (
            [
                Entry(f"test-{i:05d}.png", (3, 32, 32), i)
                for i in range(start, min(start + 256, 600))
            ],
            b"payload",
        )
        for start in (0, 256, 512)
    ]
    data = write(path, chunks)
    with Reader(path) as reader:
        second = reader.chunks[1]
    end = second.offset + second.length

    def damage(offset: int, cut: int | None = None) -> Reader:
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 : cut])
        return Reader(path)

    with damage(end - 1) as reader:
        assert reader.entries(1) == chunks[1][0]
        with pytest.raises(
            DamagedFile,
            match=r"x\.pcdm: the payload of chunk 2 with images 257 to 512 of 600 "
            r".*'test-00256.png' to 'test-00511.png' cannot",
        ):
            reader.chunk(1)
    with damage(second.offset + 30) as reader:
        with pytest.raises(
            DamagedFile,
            match=r"x\.pcdm: the header of chunk 2 with images 257 to 512 of 600 is damaged",
        ):
            reader.chunk(1)
        assert (
            reader.find("test-00599.png") == 2
            and reader.damage == ()
            and reader.layout()["damaged"] == second.length
        )
        with pytest.raises(KeyError, match="1 chunk header could not be read"):
            reader.find("test-00256.png")
    with damage(second.offset + 30, -5) as reader:
        assert (
            [info.number for info in reader.chunks] == [0, 2]
            and reader.num_images == 600
            and reader.find("test-00599.png") == 2
        )
        assert "found 2 whole chunks with 344 images by walking" in reader.damage[0]
        assert "chunk 2 with images 257 to 512 cannot be found" in reader.damage
        with pytest.raises(DamagedFile, match="chunk 2 was not found"):
            reader.entries(1)
        with pytest.raises(IndexError):
            reader.entries(3)
        with pytest.raises(KeyError, match="chunk 2 with images 257 to 512 cannot be found"):
            reader.find("test-00256.png")


def test_appended_and_concatenated(
    tmp_path: Path, sample: tuple[bytes, tuple[ChunkInfo, ...]]
) -> None:
    """What stands behind the end is reported, is not read, and costs nothing, even where it is a
    file with the same header."""
    data, chunks = sample
    path, other = tmp_path / "x.pcdm", tmp_path / "other.pcdm"
    more = write(other, [([Entry(f"other{i}", (1, 2, 2), 0)], b"") for i in range(5)])
    # also where the last chunk header is damaged, so that walking does not come to the index
    damaged = bytearray(data)
    damaged[chunks[2].offset] ^= 1
    for extra in (b"\0", b"x" * 5000, data, more):
        path.write_bytes(data + extra)
        result = read_some(path)
        assert (
            result is not None
            and result[0] == {0, 1, 2}
            and f"{len(extra)} byte" in result[1][0]
            and "appended" in result[1][0]
        )
        path.write_bytes(damaged + extra)
        result = read_some(path)
        assert result is not None and result[0] == {0, 1} and "appended" in result[1][0]


def test_chunk_of_another_file(tmp_path: Path, sample: tuple[bytes, tuple[ChunkInfo, ...]]) -> None:
    """A chunk that was coded with another model is damage, and so is a right one in the wrong
    place."""
    data, chunks = sample
    path = tmp_path / "x.pcdm"
    foreign = write(path, SAMPLE, {**HEADER, "weights": "f0" * 8})
    assert len(foreign) == len(data)
    a, b, c, end = (
        chunks[0].offset,
        chunks[1].offset,
        chunks[2].offset,
        chunks[2].offset + chunks[2].length,
    )
    path.write_bytes(data[:b] + foreign[b:c] + data[c:])
    result = read_some(path)
    assert result is not None and result[0] == {0, 2}
    path.write_bytes(data[:a] + data[c:end] + data[b:c] + data[a:b] + data[end:])
    result = read_some(path)
    assert result is not None and result[0] <= {1}
    path.write_bytes(data[:a] + data[b:c] + data[a:b] + data[c:end])
    result = read_some(path)
    assert result is not None and result[0] >= {2}


def test_container_within_a_payload(
    tmp_path: Path, sample: tuple[bytes, tuple[ChunkInfo, ...]]
) -> None:
    """Chunks of another file inside a payload are not taken for chunks of this one, even when those
    are searched for."""
    path = tmp_path / "x.pcdm"
    chunks = [([Entry("outer", (1, 1, 1), 0)], sample[0]), ([Entry("last", (1, 1, 1), 0)], b"x")]
    data = write(path, chunks, {"model": "other"})
    with Reader(path) as reader:
        start = reader.chunks[0].offset
    path.write_bytes(data[: start + 1] + b"?" + data[start + 2 : -1])
    assert read_some(path, chunks) == ({1}, Reader(path).damage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"", "it is empty"),
        (lambda d: b"\x89PNG\r\n\x1a\n" + d[8:], "is no .pcdm file"),
        (lambda d: d[:5], "cut short"),
        (lambda d: d[:12], "cut short"),
        (lambda d: d.replace(b"\r\n", b"\n"), "text mode"),
        (lambda d: bytes(b & 127 for b in d), "text mode"),
        (lambda d: d[:8] + b"\2\0" + d[10:], "header at the start is damaged"),
    ],
)
def test_files_of_another_kind(
    tmp_path: Path,
    sample: tuple[bytes, tuple[ChunkInfo, ...]],
    change: Callable[[bytes], bytes],
    message: str,
) -> None:
    path = tmp_path / "x.pcdm"
    path.write_bytes(change(sample[0]))
    with pytest.raises(DamagedFile, match=message):
        Reader(path)


def test_another_version(tmp_path: Path) -> None:
    start = GOLDEN[:8] + b"\7\0" + GOLDEN[10:14]
    (tmp_path / "x.pcdm").write_bytes(
        start + struct.pack("<I", zlib.crc32(start + GOLDEN[18:46])) + GOLDEN[18:]
    )
    with pytest.raises(
        UnknownVersion, match="format version 7, and this program reads versions 1 to 2"
    ):
        Reader(tmp_path / "x.pcdm")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reader(tmp_path / "x.pcdm")
    with pytest.raises(DamagedFile, match="folder"):
        Reader(tmp_path)


# Hostile files, whose checksums are right


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def start_of(body: bytes) -> tuple[bytes, int]:
    """Preamble and header, and their seal."""
    start = struct.pack("<8sHI", GOLDEN[:8], 1, len(body))
    seal = zlib.crc32(start + body)
    return start + struct.pack("<I", seal) + body, seal


START, SEAL = start_of(deflated(b"{}"))


def chunk_of(
    body: bytes, payload: bytes = b"", length: int | None = None, seal: int = SEAL
) -> bytes:
    fields = struct.pack(
        "<4sIQI",
        b"\x8eCHK",
        len(body),
        len(payload) if length is None else length,
        zlib.crc32(payload),
    )
    return fields + struct.pack("<I", zlib.crc32(fields + body, seal)) + body + payload


def index_of(index: bytes, flag: int = 0) -> bytes:
    field = struct.pack("<I", len(index) | flag << 31)
    return index + field + struct.pack("<I", zlib.crc32(index + field, SEAL)) + b"\x8eEND"


def cheap(
    path: Path, data: bytes, peak: int = 50, seconds: float = 10
) -> tuple[set[int], tuple[str, ...]] | None:
    """What can be read of a hostile file, in that many MiB and seconds of work at most."""
    path.write_bytes(data)
    begin = time.process_time()
    tracemalloc.start()
    try:
        good = set()
        try:
            with Reader(path) as reader:
                reader.layout()
                for info in reader.chunks[:50]:
                    try:
                        reader.chunk(info.number)
                        good.add(info.number)
                    except DamagedFile:
                        pass
                with pytest.raises(KeyError):
                    reader.find("no such name")
                return good, reader.damage
        except DamagedFile:
            return None
    finally:
        assert tracemalloc.get_traced_memory()[1] < peak << 20
        tracemalloc.stop()
        assert time.process_time() - begin < seconds


ONE = b"\0\0\1" + deflated(b"a\0\1\1\1\1") + bytes(4)


def test_hand_made_file_is_sound(tmp_path: Path) -> None:
    """What the tests below change is a file that is read without complaint."""
    data = START + chunk_of(ONE, b"x") + index_of(bytes([1, len(chunk_of(ONE, b"x")), 1]))
    assert cheap(tmp_path / "x.pcdm", data) == ({0}, ())


@pytest.mark.parametrize(
    "body",
    [
        deflated(b'{"a":"' + b"a" * (64 << 20) + b'"}'),
        deflated(b"[" * 1000000),
        deflated(b"[]"),
        deflated(b'{"a":NaN}'),
        deflated(b'{"a":' + b"9" * 100000 + b"}"),
        deflated(b'{"a":"\xff"}'),
        deflated(b"{}") + b"x",
        deflated(b"{}")[:-1],
        b"\xff\xff\xff",
        b"",
    ],
    ids=["bomb", "deep", "list", "nan", "digits", "utf8", "more", "cut", "deflate", "empty"],
)
def test_hostile_header(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "x.pcdm").write_bytes(start_of(body)[0] + GOLDEN[46:])
    with pytest.raises(DamagedFile, match="header at the start"):
        Reader(tmp_path / "x.pcdm")
    assert cheap(tmp_path / "x.pcdm", start_of(body)[0], peak=30, seconds=5) is None


def test_huge_lengths(tmp_path: Path) -> None:
    """Lengths that no file has cost neither memory nor time, wherever they stand."""
    path = tmp_path / "x.pcdm"
    assert (
        cheap(
            path, struct.pack("<8sHII", GOLDEN[:8], 1, 0xFFFFFFFF, 0) + b"x" * 99, peak=2, seconds=2
        )
        is None
    )
    huge = (1 << 63) - 1
    varint = b"\xff" * 8 + b"\x7f"
    for data in (
        chunk_of(ONE, length=(1 << 64) - 1),
        chunk_of(ONE, length=huge),
        struct.pack("<4sIQII", b"\x8eCHK", 0xFFFFFFFF, huge, 0, 0) + bytes(99),
        chunk_of(b"\0\0" + varint + ONE[3:]),
        chunk_of(varint * 2 + ONE[2:]) * 2,
        chunk_of(b"\xff" * 50),
        chunk_of(ONE) + index_of(varint),
        chunk_of(ONE) + index_of(b"\1" + varint * 2),
        chunk_of(ONE) + index_of(bytes([1, len(chunk_of(ONE))]) + varint),
        chunk_of(ONE) + index_of(deflated(bytes(64 << 20)), 1),
        chunk_of(ONE) + struct.pack("<II4s", 0x7FFFFFFF, 0, b"\x8eEND"),
        chunk_of(ONE) + struct.pack("<II4s", 0xFFFFFFFF, 0, b"\x8eEND"),
    ):
        result = cheap(path, START + data, peak=8, seconds=5)
        assert result is not None and result[1]


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"\0",
        b"\1",
        bytes([1, 255, 1, 1]),
        bytes([1, 42, 1]),
        bytes([1, 44, 1]),
        bytes([1, 43, 0]),
        bytes([1, 43, 5]),
        bytes([1, 43, 1, 1]),
        bytes([2, 43, 0, 1, 1]),
        bytes([2, 20, 23, 1, 1]),
        bytes([2, 43, 43, 1, 1]),
    ],
)
def test_index_that_contradicts_the_file(tmp_path: Path, index: bytes) -> None:
    """Gaps, overlaps, no chunks, too many images: reported, and the chunk is found without the
    index."""
    assert len(chunk_of(ONE, b"filler")) == 43
    result = cheap(tmp_path / "x.pcdm", START + chunk_of(ONE, b"filler") + index_of(index))
    assert (
        result is not None
        and result[0] == {0}
        and "found 1 whole chunk with 1 image by walking" in result[1][0]
    )


@pytest.mark.parametrize("counts", [(1, 2), (2, 1)])
def test_index_that_contradicts_chunk_headers(tmp_path: Path, counts: tuple[int, int]) -> None:
    """Right lengths and wrong numbers of images."""
    one = chunk_of(ONE, b"12345678")
    two = chunk_of(b"\1\1" + ONE[2:], b"12345678")
    data = START + one + two + index_of(bytes([2, len(one), len(two), *counts]))
    result = cheap(tmp_path / "x.pcdm", data)
    assert result is not None and result[0] == ({0} if counts[0] == 1 else set())


@pytest.mark.parametrize(
    "body",
    [
        b"\0\0\1" + deflated(b"\0\1\1\1\1") + bytes(4),
        b"\0\0\1" + deflated(b"a\0\1\2\1\1") + bytes(4),
        b"\0\0\1" + deflated(b"a\0\1\1\0\1") + bytes(4),
        b"\0\0\1" + deflated(b"a\0\1\1\1\xff\xff\x04") + bytes(4),
        b"\0\0\1" + deflated(b"a\0\2\1\1\1") + bytes(4),
        b"\0\0\1" + deflated(b"a\0\0\1\1\1\1\1\1\1") + bytes(4),
        b"\0\0\1" + deflated(b"a\0\1\1\1\1\1") + bytes(4),
        b"\0\0\1" + deflated(b"a\0\1\1\1") + bytes(4),
        b"\0\0\1" + deflated(b"a") + bytes(4),
        b"\0\0\1" + deflated(b"\xff\0\1\1\1\1") + bytes(4),
        b"\0\0\2" + deflated(b"a\0\0\2\1\1\1") + bytes(8),
        b"\0\0\2" + deflated(b"a\0a\0\2\1\1\1") + bytes(8),
        b"\0\0\1" + deflated(b"a\0\1\1\1\1") + bytes(5),
        b"\0\0\1" + deflated(b"a" * 1025 + b"\0\1\1\1\1") + bytes(4),
        b"\0\0\1" + deflated(b"a" * (64 << 20) + b"\0\1\1\1\1") + bytes(4),
        b"\0\0\x80\x80\4"
        + deflated(b"a" * 1000 + b"1.png" + bytes(65536) + b"\x80\x80\4\1\1\1")
        + bytes(4 * 65536),
    ],
)
def test_hostile_chunk_header(tmp_path: Path, body: bytes) -> None:
    chunk = chunk_of(body)
    assert cheap(tmp_path / "x.pcdm", START + chunk, peak=60) == (
        set(),
        Reader(tmp_path / "x.pcdm").damage,
    )


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=12),
    st.binary(max_size=30),
    st.binary(max_size=20),
    st.binary(max_size=12),
    st.booleans(),
)
def test_garbage_under_right_checksums(
    tmp_path: Path, numbers: bytes, columns: bytes, tail: bytes, index: bytes, flag: bool
) -> None:
    """Whatever stands in chunk headers and index, nothing but the two errors comes of it."""
    path = tmp_path / "x.pcdm"
    for body in (
        numbers + columns,
        b"\0\0" + numbers[:1] + deflated(columns) + tail,
        b"\0\0\1" + deflated(columns + b"\0" + tail) + bytes(4),
    ):
        for end in (
            index_of(index),
            index_of(deflated(index), flag),
            index_of(b"\1" + bytes([len(chunk_of(body)), 1])),
        ):
            result = cheap(path, START + chunk_of(body) + end)
            assert result is None or result[0] <= {0}  # one chunk at most


def test_floods(tmp_path: Path) -> None:
    """Files made of false markers, of chunks within chunks, of gaps: no search is quadratic."""
    path = tmp_path / "x.pcdm"
    size = 3 << 20
    false = struct.pack("<4sIQII", b"\x8eCHK", size // 2, 0, 0, 0)
    end = b"".join(struct.pack("<II4s", n, 0, b"\x8eEND") for n in range(0, size, 12))
    for flood in (false * (size // 24), b"\x8eCHK" * (size // 4), b"\x8eEND" * (size // 4), end):
        result = cheap(path, START + flood)
        assert result is not None and result[0] == set() and result[1]

    def numbered(i: int, **kwargs: Any) -> bytes:
        return chunk_of(
            struct.pack(
                "5B", i & 127 | 128, i >> 7 & 127 | 128, i >> 14, i & 127 | 128, i >> 7 & 127 | 128
            )
            + bytes([i >> 14])
            + ONE[2:],
            **kwargs,
        )

    gaps = b"".join(numbered(i) + b"?" for i in range(10000))
    result = cheap(path, START + gaps, seconds=20)
    assert (
        result is not None
        and len(result[0]) == 50
        and len(result[1]) == 102
        and "more such places" in result[1][-1]
    )
    for reach in (1 << 40, 400000):  # all behind the file, or into many chunks that follow
        nested = b"".join(numbered(i, length=reach) for i in range(10000))
        assert cheap(path, START + nested, seconds=20) is not None


# Writing


def entry(name: str = "a", shape: Any = (3, 8, 8), checksum: Any = 0) -> Entry:
    return Entry(name, shape, checksum)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "from 1 to 65536 images, not 0"),
        ([entry("")], "one character"),
        ([entry("a\0b")], "NUL"),
        ([entry("\ud800")], "Unicode"),
        ([entry("a" * 1025)], "1025 bytes"),
        ([entry(), entry()], "two images are named 'a'"),
        ([entry("old")], "two images are named 'old'"),
        ([entry(shape=(2, 8, 8))], "C must be 1 or 3"),
        ([entry(shape=(3, 0, 8))], "from 1 to 65535"),
        ([entry(shape=(3, 8, 65536))], "from 1 to 65535"),
        ([entry(shape=(8, 8))], "three whole numbers"),
        ([entry(shape=(3, 8.0, 8))], "three whole numbers"),
        ([entry(checksum=-1)], "from 0 to"),
        ([entry(checksum=1 << 32)], "from 0 to"),
        ([entry(checksum="x")], "three whole numbers"),
    ],
)
def test_refused_entries(tmp_path: Path, entries: list[Entry], message: str) -> None:
    """What cannot be stored is refused before anything is written, and the file goes on as if
    nothing had been asked."""
    with Writer(tmp_path / "x.pcdm", HEADER) as writer:
        writer.add_chunk([entry("old")], b"1")
        with pytest.raises(ValueError, match=message):
            writer.add_chunk(entries, b"2")
        writer.add_chunk([entry("new")], b"3")
    with Reader(tmp_path / "x.pcdm") as reader:
        assert [reader.chunk(i) for i in range(2)] == [
            ([entry("old")], b"1"),
            ([entry("new")], b"3"),
        ] and len(reader.chunks) == 2


@pytest.mark.parametrize(
    "header",
    [
        {"a": float("nan")},
        {1: 2},
        {"a": (1, 2)},
        {"a": b"x"},
        {"a": "\ud800"},
        {"a": "x" * (1 << 20)},
        [1],
        5,
    ],
)
def test_refused_headers(tmp_path: Path, header: Any) -> None:
    with pytest.raises(ValueError, match="the header"):
        Writer(tmp_path / "x.pcdm", header)


def test_no_chunk(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold no image"), Writer(tmp_path / "x.pcdm", HEADER):
        pass
    assert list(tmp_path.iterdir()) == []


def test_use_outside_the_block(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "x.pcdm", HEADER)
    with pytest.raises(ValueError, match="`with` block"):
        writer.add_chunk([entry()], b"")
    with writer:
        writer.add_chunk([entry()], b"")
    with pytest.raises(ValueError, match="`with` block"):
        writer.add_chunk([entry("b")], b"")
    with pytest.raises(ValueError, match="one file once"), writer:
        pass
    with pytest.raises(IsADirectoryError, match="is a folder"), Writer(tmp_path, HEADER):
        pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"the old file"])
def test_interrupted(tmp_path: Path, error: type[BaseException], before: bytes | None) -> None:
    """Nothing under the final name, no temporary file, and an old file as it was."""
    path = tmp_path / "x.pcdm"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error), Writer(path, HEADER) as writer:
        writer.add_chunk([entry()], b"payload" * 10000)
        assert (path.read_bytes() if path.exists() else None) == before
        raise error
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == (
        {} if before is None else {"x.pcdm": before}
    )


def test_failed_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no rename")

    monkeypatch.setattr(container.os, "replace", fail)
    with pytest.raises(OSError, match="no rename"), Writer(tmp_path / "x.pcdm", HEADER) as writer:
        writer.add_chunk([entry()], b"")
    assert list(tmp_path.iterdir()) == []


def test_error_while_writing_that_is_caught(tmp_path: Path) -> None:
    """A chunk that was written in part cannot end up in a file, whatever the caller makes of the
    exception."""

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.writes = file, 0

        def write(self, data: bytes) -> int:
            self.writes += 1
            if self.writes == 2:
                raise OSError("no space")
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with (
        pytest.raises(OSError, match="was not written"),
        Writer(tmp_path / "x.pcdm", HEADER) as writer,
    ):
        writer._file = Full(writer._file)  # type: ignore[assignment]
        with pytest.raises(OSError, match="no space"):
            writer.add_chunk([entry()], b"payload")
        writer.add_chunk([entry()], b"payload")
    assert list(tmp_path.iterdir()) == []


def test_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.pcdm"
    first = write(path, SAMPLE[:1])
    second = write(path, SAMPLE)
    assert path.read_bytes() == second != first and [p.name for p in path.parent.iterdir()] == [
        "x.pcdm"
    ]
    plain = path.with_name("plain")
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed(tmp_path: Path) -> None:
    """A process that is killed has written nothing under the final name."""
    path = tmp_path / "x.pcdm"
    # two modules alone: the package would import torch, which takes seconds
    program = f"""
import sys, time, types
package = types.ModuleType("pcdm_lib")
package.__path__ = [{str(Path(container.__file__).parent.parent)!r}]
sys.modules["pcdm_lib"] = package
sys.path.insert(0, {str(Path(container.__file__).parent)!r})
from container import Entry, Writer
with Writer({str(path)!r}, {{}}) as writer:
    writer.add_chunk([Entry("a", (1, 1, 1), 0)], bytes(1 << 20))
    print("written", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    assert not path.exists() and all(p.name.startswith(".x.pcdm.") for p in tmp_path.iterdir())
