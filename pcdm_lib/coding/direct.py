"""Images <-> the payload of a chunk, by a direct cascade: no latents, no bits to start from.

Images of one shape are coded together, as a group, in one stream of a range coder
(coding/mixtures.py), coarse levels first. The payload is:

    varints  number of images that are plain, and which; for each the length of its file
             for each group: how many marks, the marks, and the length of its stream in words
    bytes    the plain files, then the streams, words of 32 bits

A mark says how many words of the stream hold the coarse levels: of a photograph's first bytes a
small picture can be decoded (`DirectCodec.preview`). The last mark is for the picture at half the
side, the one before it for a quarter, and so on; short streams have none.

Images that the model would expand, and drawings that PNG makes smaller than the model does, are
stored as plain files, PNG or JPEG XL, whichever is smaller. A grey image in a
model of colours has one colour coded and the others are its copies; a colour image in a model of
grey is three grey ones.
"""

from __future__ import annotations

import copy
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcdm_lib.coding.chunks import (
    MAX_SAMPLES,
    Image,
    PayloadBytes,
    Settings,
    Statistics,
    plain_file,
    plain_places,
    read_plain_file,
)
from pcdm_lib.coding.container import MAX_SIDE, varints
from pcdm_lib.coding.mixtures import Answers, Symbols, code, tables
from pcdm_lib.coding.plain import encode_image
from pcdm_lib.coding.tiles import Box, pieces
from pcdm_lib.models.direct import depth, pyramid, sides_of
from pcdm_lib.models.direct_cascade import DirectCascade
from pcdm_lib.models.integers import check_sums
from pcdm_lib.models.unfolding import Question, unfold, values_at

CODING = 2  # version of what this module and coding/mixtures.py do with the bits
_GROUP = 1 << 20  # samples of the images that the network sees at once; a larger one alone
_MARKED = 1024  # words: shorter streams have no marks
_MARKS = 4
_TILE = 1 << 10  # pixels that count as one tile of `Settings.chunk_tiles`
_ALIGNED = 64  # pixels: pieces of an image begin at whole multiples
_HALF = 1 << 19  # an even chance, for `Answers`

Shape = tuple[int, int, int]


class _Group(NamedTuple):
    """Images of a chunk that are coded together."""

    places: tuple[int, ...]
    shape: Shape


class _Stream(NamedTuple):
    marks: tuple[int, ...]
    words: np.ndarray
    whole: bool = True

    def enough(self, stop: int) -> bool:
        """Whether the words reach to the picture at 1 / 2^stop of the side. The decoder looks two
        words ahead."""
        if not self.marks or stop == 0:
            return self.whole
        return len(self.words) >= self.marks[-min(stop, len(self.marks))] + 2


def aligned_pieces(shape: Shape, settings: Settings) -> list[Box]:
    """Where an image is cut into pieces, at whole multiples of 64 pixels, so that a small picture
    has whole pixels of every piece.

    Args:
        shape: (C, H, W).
        settings: of which `piece` counts.

    Returns:
        Boxes, row after row; one for an image that is small enough.
    """
    boxes = pieces(shape, _ALIGNED, min(settings.piece, MAX_SAMPLES), MAX_SIDE)
    tops = _aligned([box.top for box in boxes], shape[1])
    lefts = _aligned([box.left for box in boxes], shape[2])
    return [
        Box(top, left, bottom - top, right - left)
        for top, bottom in zip(tops, tops[1:])
        for left, right in zip(lefts, lefts[1:])
    ]


def blocks(height: int, width: int) -> int:
    """Blocks of all levels of an image, each of which is coded once.

    Args:
        height: of the image.
        width: of the image.

    Returns:
        Their number.
    """
    return sum(high * wide for high, wide in sides_of(height, width)[1:])


class DirectCodec:
    """A direct cascade made ready to code images of any size.

    Args:
        cascade: the model, with its network.
        settings: of which `chunk_tiles`, `piece` and `plain` count.
        device: where the network runs; of no consequence for the file.
        on_evaluation: called with the number of blocks after each phase of a level.

    Raises:
        ValueError: for a model that files cannot have.

    Example:
        >>> from pcdm_lib.coding.direct import DirectCodec
        >>> codec = DirectCodec(pcdm.build(pcdm.preset("tiny", "direct").model))
        >>> image = np.zeros((3, 5, 7), np.uint8)
        >>> payload = codec.encode([image])
        >>> np.array_equal(codec.decode([image.shape], payload)[0], image)
        True
    """

    def __init__(
        self,
        cascade: DirectCascade,
        settings: Settings | None = None,
        device: torch.device | str = "cpu",
        on_evaluation: Callable[[int], None] | None = None,
    ):
        if cascade.max_value != 255 or cascade.image_shape[0] not in (1, 3):
            raise ValueError(
                f"files hold 8-bit grey or RGB images, this model is of {cascade.image_shape[0]} "
                f"channels with values 0..{cascade.max_value}"
            )
        self.settings = settings or Settings()
        self.colours, self.device = cascade.image_shape[0], torch.device(device)
        self.network = copy.deepcopy(cascade.network).to(self.device, torch.float32).eval()
        check_sums(self.network)
        self._on_evaluation = on_evaluation
        self._coder_seconds = 0.0

    @property
    def tables(self) -> int:
        """A checksum of the coder's tables: the same on every machine."""
        return zlib.crc32(b"".join(t.astype("<i8").tobytes() for t in tables()))

    # ---- what is put together

    def weight(self, shape: Shape) -> int:
        """What an image counts for until a chunk is full, in tiles.

        Args:
            shape: (C, H, W).

        Returns:
            At least 1.
        """
        return max(1, shape[1] * shape[2] // _TILE)

    def pieces(self, shape: Shape) -> list[Box]:
        """Where an image is cut into pieces; all of it where it is small enough.

        Args:
            shape: (C, H, W).

        Returns:
            Boxes, row after row.
        """
        return aligned_pieces(shape, self.settings)

    def _groups(self, shapes: Sequence[Shape], without: set[int]) -> list[_Group]:
        alike: dict[Shape, list[int]] = {}
        for place, shape in enumerate(shapes):
            if place not in without:
                alike.setdefault(shape, []).append(place)
        found = []
        for shape, places in alike.items():
            count = max(1, _GROUP // math.prod(shape))
            for at in range(0, len(places), count):
                found.append(_Group(tuple(places[at : at + count]), shape))
        return found

    # ---- streams

    def _stacked(self, images: Sequence[Image], group: _Group) -> Tensor:
        """The images of a group as the network takes them, (N, colours, H, W)."""
        x = torch.from_numpy(np.stack([images[place] for place in group.places]).astype(np.int32))
        if group.shape[0] == self.colours:
            return x
        return x.flatten(0, 1).unsqueeze(1) if self.colours == 1 else x.expand(-1, 3, -1, -1)

    def _write(self, x: Tensor, grey: bool) -> _Stream:
        """The stream of images (N, colours, H, W)."""
        x = x.to(self.device)
        base, levels = pyramid(x)
        by_number = {level.number: level for level in levels}
        answers, written = Answers(), [0]

        def choose(question: Question) -> Tensor:
            values = values_at(by_number[question.level], question)
            self._coded(answers, question, values)
            return values

        self._base(answers, base[:, :1] if grey else base, len(levels))
        height, width = x.shape[2:]
        for _ in unfold(self.network, base, height, width, choose, grey=grey):
            written.append(answers.written)
        words = answers.words()
        marks = written[1:-1][-_MARKS:] if len(words) >= _MARKED else []
        return _Stream(tuple(min(mark, len(words) - 2) for mark in marks), words)

    def _read(
        self, words: np.ndarray, shape: Shape, count: int, grey: bool, stop: int = 0
    ) -> Tensor:
        """Sums of the blocks of level `stop` of images (count, *shape)."""
        answers = Answers(np.ascontiguousarray(words, dtype=np.uint32))
        height, width = shape[1:]

        def choose(question: Question) -> Tensor:
            return self._coded(answers, question)

        like = torch.zeros(count, 1 if grey else shape[0], 1, 1, dtype=torch.int64)
        base = self._base(answers, like, depth(height, width), reads=True)
        base = base.expand(-1, shape[0], -1, -1).to(self.device)
        steps = unfold(self.network, base, height, width, choose, stop, grey)
        return [sums for _, sums in steps][-1]

    def _base(self, answers: Answers, base: Tensor, levels: int, reads: bool = False) -> Tensor:
        """Write the sums of the last block bit by bit, or read them."""
        began = time.perf_counter()
        bits = (255 * 4**levels).bit_length()
        values = base.reshape(-1).cpu().numpy().astype(np.int64)
        even = np.full(len(values), _HALF)
        found = np.zeros_like(values)
        for bit in range(bits - 1, -1, -1):
            told = answers.code(even, None if reads else values >> bit & 1)
            found |= told.astype(np.int64) << bit
        self._coder_seconds += time.perf_counter() - began
        return torch.from_numpy(found).view(base.shape)

    def _coded(self, answers: Answers, question: Question, values: Tensor | None = None) -> Tensor:
        """Write the answers to a question, or read them."""
        mixture = [_integers(part) for part in question.mixture]
        low, last = _integers(question.low), _integers(question.last)
        given = None if values is None else _integers(values)
        began = time.perf_counter()
        shift = 2 * (question.level - 1)
        logits, places, widths = mixture
        symbols = Symbols(logits, places, widths, low, last, question.step, shift)
        found = code(answers, symbols, given)
        self._coder_seconds += time.perf_counter() - began
        if self._on_evaluation is not None and question.place == 0:
            self._on_evaluation(len(low))
        return torch.from_numpy(found)

    # ---- chunks

    def encode(self, images: Sequence[Image], statistics: Statistics | None = None) -> bytes:
        """The payload of some images.

        Args:
            images: (C, H, W) each, uint8, C of 1 or 3.
            statistics: brought up to date.

        Returns:
            Bytes that `decode` takes.
        """
        began, coder = time.perf_counter(), self._coder_seconds
        shapes: list[Shape] = [image.shape for image in images]
        plain, streams = self._chosen(images, shapes)
        head = [len(plain), *np.diff([-1, *sorted(plain)]).tolist()]
        head += [len(plain[place]) for place in sorted(plain)]
        for _, stream in streams:
            head += [len(stream.marks), *stream.marks, len(stream.words)]
        body = b"".join(plain[place] for place in sorted(plain))
        words = b"".join(stream.words.astype("<u4").tobytes() for _, stream in streams)
        payload = varints(head) + body + words
        if statistics is not None:
            statistics.images += len(images)
            statistics.chunks += 1
            statistics.dims += sum(image.size for image in images)
            statistics.plain_images += len(plain)
            statistics.plain_bits += 8 * len(body)
            statistics.model_bits += 8 * len(words)
            statistics.container_bits += 8 * (len(payload) - len(body) - len(words))
            for group, _ in streams:
                statistics.model_images += len(group.places)
                statistics.model_dims += len(group.places) * math.prod(group.shape)
            seconds = time.perf_counter() - began
            statistics.seconds += seconds
            statistics.network_seconds += seconds - (self._coder_seconds - coder)
        return payload

    def _chosen(
        self, images: Sequence[Image], shapes: Sequence[Shape]
    ) -> tuple[dict[int, bytes], list[tuple[_Group, _Stream]]]:
        """Plain files by place, and the streams of the others. A group is coded by the model; where
        that takes more than its plain files, these are kept instead."""
        plain: dict[int, bytes] = {}
        streams = []
        for group in self._groups(shapes, set()):
            grey = group.shape[0] < self.colours
            stream = self._write(self._stacked(images, group), grey)
            took = 4 * len(stream.words)
            if self.settings.plain and self._worth_a_try(images, group, took):
                files = {place: plain_file(images[place]) for place in group.places}
                if sum(len(file) + 3 for file in files.values()) < took:
                    plain |= files
                    continue
            streams.append((group, stream))
        return plain, streams

    def _worth_a_try(self, images: Sequence[Image], group: _Group, took: int) -> bool:
        """Whether plain files may be smaller. Of noise and of few bytes all are tried, which takes
        seconds an image; else PNG alone, which is quick and smaller for drawings and text."""
        if took < 4096 or took > 0.75 * len(group.places) * math.prod(group.shape):
            return True
        total = 0
        for place in group.places:
            image = images[place]
            array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            total += len(encode_image("PNG", np.ascontiguousarray(array)))
            if total >= took:
                return False
        return True

    def decode(self, shapes: Sequence[Shape], payload: bytes) -> list[Image]:
        """The images of a payload.

        Args:
            shapes: (C, H, W) of each.
            payload: what `encode` gave.

        Returns:
            Arrays (C, H, W) of uint8.

        Raises:
            ValueError: where it is not a payload of such images.
        """
        images: list[Image] = [np.zeros((0, 0, 0), np.uint8)] * len(shapes)
        files, streams = self._parsed(shapes, payload, whole=True)
        for place, file in files.items():
            images[place] = read_plain_file(file, shapes[place])
        for group, stream in streams:
            self._put(images, group, self._read_group(group, stream.words))
        return images

    def preview(self, shapes: Sequence[Shape], payload: bytes, level: int) -> list[Image | None]:
        """The images at 1 / 2^level of their sides, from a payload or its beginning.

        Args:
            shapes: (C, H, W) of the images.
            payload: all of what `encode` gave, or the first bytes of it.
            level: 1 for half the side.

        Returns:
            Arrays (C, h, w) of uint8, the rounded means of the blocks; None for an image whose
            bytes are not there.

        Raises:
            ValueError: where it is not a payload of such images.
        """
        found: list[Image | None] = [None] * len(shapes)
        files, streams = self._parsed(shapes, payload, whole=False)
        for place, file in files.items():
            whole = torch.from_numpy(read_plain_file(file, shapes[place])[None].astype(np.int32))
            found[place] = _small(whole, level)[0]
        for group, stream in streams:
            stop = min(level, depth(*group.shape[1:]))
            if not stream.enough(stop):
                continue
            sums = self._read_group(group, stream.words, stop)
            small = (sums.double() / 4**stop).round()
            for place, image in zip(group.places, self._unstacked(group, small)):
                found[place] = image
        return found

    def _read_group(self, group: _Group, words: np.ndarray, stop: int = 0) -> Tensor:
        count, channels = len(group.places), group.shape[0]
        if self.colours == 1:
            count, channels = count * channels, 1
        grey = channels < self.colours
        return self._read(words, (self.colours, *group.shape[1:]), count, grey, stop)

    def _unstacked(self, group: _Group, x: Tensor) -> Iterator[Image]:
        if int(x.min()) < 0 or int(x.max()) > 255:
            raise ValueError("the stream decodes to values that no pixel has")
        channels = group.shape[0]
        values = x.cpu().numpy().astype(np.uint8)
        if self.colours == 1:
            values = values.reshape(-1, channels, *values.shape[2:])
        yield from (np.ascontiguousarray(image[:channels]) for image in values)

    def _put(self, images: list[Image], group: _Group, x: Tensor) -> None:
        for place, image in zip(group.places, self._unstacked(group, x)):
            images[place] = image

    def _parsed(
        self, shapes: Sequence[Shape], payload: bytes, whole: bool
    ) -> tuple[dict[int, bytes], list[tuple[_Group, _Stream]]]:
        """Plain files and streams of a payload; those that are not there are left out where it need
        not be whole."""
        data = PayloadBytes(payload)
        places = plain_places(data, shapes)
        lengths = [data.varint() for _ in places]
        heads = []
        for group in self._groups(shapes, {*places}):
            marks = data.varint()
            if marks > _MARKS:
                raise ValueError("more marks than a stream has")
            heads.append((group, tuple(data.varint() for _ in range(marks)), data.varint()))
        files = {place: data.take(length) for place, length in zip(places, lengths)}
        streams = []
        for group, known, length in heads:
            there = length if whole else min(length, data.left // 4)
            words = np.frombuffer(data.take(4 * there), "<u4").astype(np.uint32)
            streams.append((group, _Stream(known, words, there == length)))
        if whole and data.left:
            raise ValueError("more follows the streams")
        return files, streams


def _aligned(cuts: Sequence[int], length: int) -> list[int]:
    """Cuts moved down to whole multiples."""
    return [*sorted({cut // _ALIGNED * _ALIGNED for cut in cuts}), length]


def _integers(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().astype(np.int64)


def _small(x: Tensor, level: int) -> Image:
    """Images (N, C, H, W) at 1 / 2^level of their sides: means of blocks."""
    _, levels = pyramid(x)
    sums = {found.number: found.coarse for found in levels}
    stop = min(level, len(levels))
    return (sums[stop].double() / 4**stop).round().numpy().astype(np.uint8) if stop else x.numpy()
