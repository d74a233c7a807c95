"""Chunks of a `.pcdm` file: images into tiles, tiles onto one stack of bits, and what each of them
cost.

The file around the chunks is archive.py.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pcdm_lib.coding.bits_back import FINENESS, Message
from pcdm_lib.coding.chain import Predictor, Spent, TileCodec, TimeGrid, probe
from pcdm_lib.coding.container import MAX_CHUNK_IMAGES, MAX_SIDE, varints
from pcdm_lib.coding.plain import decode_image, encode_image
from pcdm_lib.coding.tiles import Box, TileScales, pieces, plan
from pcdm_lib.models.cascade import Cascade

STEPS = 200
BATCH = 16
CHUNK_TILES = 256
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
PLAIN = ("PNG", "JPEG XL")
# of the images of a chunk that the model codes: a limit of the format, so that no file can ask for
# more memory
MAX_SAMPLES = 1 << 26
# of all images of a chunk, plain ones too: more than any writer puts there
MAX_CHUNK_SAMPLES = 1 << 29
PIECE = 1 << 22  # samples of an image beyond which it is cut into pieces, a chunk each
_MARGIN = 1024  # words at the bottom of a stack beyond those that its largest batch can need
_CODING = 1  # version of what this module and coding/bits_back.py do with the bits

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """How a file is written. What a reader needs of it stands in the header: all but `chunk_tiles`,
    `piece` and `plain`.

    Attributes:
        steps: T of the chain: the bits of the T-step bound, and the time, both ways.
        fineness: of the latents' grid (coding/bits_back.py).
        batch: largest number of tiles that share the stack at once.
        chunk_tiles: a chunk is closed once it holds as many.
        side: of the tiles; the model's own where it is None.
        precision: "float64", the same on every machine, or "float32", faster and tied to the
            machine that wrote the file.
        plain: whether images that the model would expand, and first tiles, may be stored by a plain
            codec.
        piece: samples of an image beyond which it is coded in pieces, each a chunk of its own: what
            the codec takes of memory does not grow beyond that.
    """

    steps: int = STEPS
    fineness: float = FINENESS
    batch: int = BATCH
    chunk_tiles: int = CHUNK_TILES
    side: int | None = None
    precision: str = "float64"
    plain: bool = True
    piece: int = PIECE

    def __post_init__(self) -> None:
        ranges = {
            "steps": (2, 65535),
            "fineness": (0.01, 1),
            "batch": (1, 65535),
            "chunk_tiles": (1, MAX_CHUNK_IMAGES),
            "piece": (1, MAX_SAMPLES),
            "side": (1, 65535),
        }
        options = {"chunk_tiles": " (--chunk)", "side": " (--tile)"}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(
                    f"{name}{options.get(name, '')} must be from {least} to {most}, got {value!r}"
                )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )


class _Batch(NamedTuple):
    shape: tuple[int, int, int]
    tiles: tuple[int, ...]  # places in the chunk's list of tiles


class _Tile(NamedTuple):
    image: int
    plane: int
    box: Box


@dataclass
class Statistics:
    """Where the bits of a file went. All figures in bits, of the tiles that the model coded where
    nothing else is said."""

    images: int = 0  # pieces of larger images count as images
    extra_pieces: int = 0  # those but the first of each such image
    dims: int = 0  # samples of all images, plain ones too
    model_dims: int = 0
    model_images: int = 0
    plain_images: int = 0
    start_tiles: int = 0
    model_bits: float = 0.0  # net growth of the stacks
    # the same by the densities themselves, see `Spent`
    ideal_bits: float = 0.0
    start_bits: float = 0.0  # pseudo-random bits at the bottom of the stacks
    plain_bits: float = 0.0
    container_bits: float = 0.0
    chunks: int = 0
    # by scale, (T + 2,), the rows of `Spent`
    steps: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    # by place in the file, of the images that the model coded whole
    image_bits: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0  # of encoding, network and coder
    network_seconds: float = 0.0
    verify_seconds: float = 0.0

    @property
    def total_bits(self) -> float:
        return self.model_bits + self.start_bits + self.plain_bits + self.container_bits

    @property
    def bpd(self) -> float:
        """Bits per dimension of the file, everything in it."""
        return self.total_bits / self.dims

    @property
    def net_bpd(self) -> float:
        """Bits per dimension of the tiles that the model coded, without the start of the stacks and
        the container; NaN where there are none."""
        return self.model_bits / self.model_dims if self.model_dims else math.nan

    def __str__(self) -> str:
        share = {
            "model": self.model_bits,
            "start of the stacks": self.start_bits,
            "plain files": self.plain_bits,
            "container": self.container_bits,
        }
        parts = ", ".join(f"{name} {bits / 8:.0f}" for name, bits in share.items())
        cut = f" in {self.images} pieces" if self.extra_pieces else ""
        return (
            f"{self.images - self.extra_pieces} images{cut}, {self.total_bits / 8:.0f} bytes, "
            f"{self.bpd:.4f} bits per dimension ({parts} bytes)"
        )


class ImageCodec:
    """A cascade made ready to code images: one copy of it in the precision of the file, grids, and
    tiles by shape.

    Args:
        cascade: with a network for every scale, of a map that preserves volume, for grey or RGB
            images of 8 bits.
        network_batch: tiles that a network sees at once; of no consequence for a float64 file.
    """

    def __init__(
        self,
        cascade: Cascade,
        settings: Settings,
        device: torch.device | str = "cpu",
        network_batch: int | None = None,
        on_evaluation: Callable[[int], None] | None = None,
    ):
        if cascade.max_value != 255 or cascade.image_shape[0] not in (1, 3):
            raise ValueError(
                f"files hold 8-bit grey or RGB images, this model is of {cascade.image_shape[0]} "
                f"channels with values 0..{cascade.max_value}"
            )
        self.settings, self.channels, self.map = settings, cascade.image_shape[0], cascade.map
        self.side = settings.side or max(cascade.image_shape[1:])
        TileScales(cascade.map, (self.channels, 1, 1))  # refuses maps that files cannot have
        if settings.precision == "float32" and network_batch not in (None, settings.batch):
            raise ValueError(
                "a float32 file depends on what the network sees at once: leave network_batch out"
            )
        dtype = PRECISIONS[settings.precision]
        ready = copy.deepcopy(cascade).to(device, dtype).eval()
        denoisers = [scale.denoiser for scale in ready.scales]
        self.predictors = [
            Predictor(
                d,
                getattr(d, "multiple", 1),
                network_batch or settings.batch,
                dtype,
                device,
                on_evaluation,
            )
            for d in denoisers
        ]
        self.grids = [
            TimeGrid.of(scale.schedule, settings.steps, settings.fineness)
            for scale in cascade.scales
        ]
        self._scales: dict[tuple[int, int, int], TileScales] = {}

    @property
    def tables(self) -> int:
        """A checksum of all that is computed but for the networks: the same wherever a file can be
        decoded."""
        return probe(self.grids)

    def scales(self, shape: tuple[int, int, int]) -> TileScales:
        """The scales of tiles of that shape."""
        if shape not in self._scales:
            if len(self._scales) >= 64:  # images of many sizes
                self._scales.clear()
            self._scales[shape] = TileScales(self.map, shape)
        return self._scales[shape]

    # ---- chunks

    def weight(self, shape: tuple[int, int, int]) -> int:
        """Tiles of an image (C, H, W).

        Args:
            shape: (C, H, W).

        Returns:
            Their number.
        """
        return len(self.tiles([shape]))

    def encode(self, images: Sequence[Image], statistics: Statistics) -> bytes:
        """As `encode_chunk`.

        Args:
            images: (C, H, W) each.
            statistics: brought up to date.

        Returns:
            The payload.
        """
        return encode_chunk(self, images, statistics)

    def decode(self, shapes: Sequence[tuple[int, int, int]], payload: bytes) -> list[Image]:
        """As `decode_chunk`.

        Args:
            shapes: (C, H, W) of the images.
            payload: what `encode` gave.

        Returns:
            The images.
        """
        return decode_chunk(self, shapes, payload)

    # ---- planes and tiles

    def tiles(
        self, shapes: Sequence[tuple[int, int, int]], without: Collection[int] = ()
    ) -> list[_Tile]:
        """The tiles of images (C, H, W), image after image, but for some. A grey image in a model
        of colours is one plane, three times the same; a colour image in a model of grey is
        three."""
        samples = sum(
            math.prod(shape) for image, shape in enumerate(shapes) if image not in without
        )
        if samples > MAX_SAMPLES:
            raise ValueError(
                f"{samples} samples in one chunk, a model codes at most {MAX_SAMPLES}: give fewer "
                f"tiles a chunk"
            )
        step = 2**self.map.levels * max(p.multiple for p in self.predictors)
        return [
            _Tile(image, plane, box)
            for image, (channels, height, width) in enumerate(shapes)
            if image not in without
            for plane in range(channels if self.channels == 1 else 1)
            for box in plan(height, width, self.side, step)
        ]

    def cut(self, image: Image, tile: _Tile) -> Image:
        """A tile (C of the model, h, w) of an image (C, H, W)."""
        box = tile.box
        part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
        if self.channels == 1:
            return part[tile.plane : tile.plane + 1]
        return np.broadcast_to(part, (self.channels, *part.shape[1:]))

    def paste(self, image: Image, tile: _Tile, values: NDArray) -> None:
        """Inverse of `cut`. Where three equal channels stand for a grey one, the first is taken;
        the image's checksum tells if they differ."""
        box = tile.box
        part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
        if self.channels == 1:
            part[tile.plane] = values[0]
        else:
            part[:] = values[: len(part)]

    def batches(self, tiles: Sequence[_Tile], chosen: Sequence[int]) -> list[_Batch]:
        """The chosen tiles in batches of one shape, in the order in which they are pushed. The
        first are small: a batch draws its latents from what those before it left."""
        groups: dict[tuple[int, int, int], list[int]] = {}
        for place in chosen:
            box = tiles[place].box
            groups.setdefault((self.channels, box.height, box.width), []).append(place)
        found, before = [], 0
        for shape, places in groups.items():
            dims = self.scales(shape).dims
            at = 0
            while at < len(places):
                some = tuple(
                    places[at : at + min(self.settings.batch, max(1, before // (2 * dims)))]
                )
                found.append(_Batch(shape, some))
                before += dims * len(some)
                at += len(some)
        return found

    def start_need(self, shape: tuple[int, int, int]) -> float:
        """Bits that have to lie on the stack before a tile of that shape can be pushed."""
        return self.scales(shape).coded[-1].sum() * self.grids[-1].start_bits

    def pieces(self, shape: tuple[int, int, int]) -> list[Box]:
        """Where an image (C, H, W) is cut into pieces; all of it where it is small enough."""
        return pieces(shape, self.side, min(self.settings.piece, MAX_SAMPLES), MAX_SIDE)

    def _codec(self, batch: _Batch, number: int) -> TileCodec:
        scales = self.scales(batch.shape)
        return TileCodec(scales, self.predictors, self.grids, len(batch.tiles), number)

    # ---- stacks

    def push(
        self,
        batches: Sequence[_Batch],
        values: Callable[[int], Image],
        start: bytes,
    ) -> tuple[Message, int, list[dict[str, Spent]]]:
        """All batches on a stack that begins with `start` above enough pseudo-random words: the
        stack, the bits it began with, and what each batch took, by scale."""
        most = max((self.scales(b.shape).dims * len(b.tiles) for b in batches), default=0)
        spare = math.ceil(most * max(grid.start_bits for grid in self.grids) / 32) + _MARGIN
        bottom = np.random.Philox(key=_CODING << 96).random_raw(spare).astype(np.uint32)
        filled = np.frombuffer(start + bytes(-len(start) % 4), "<u4").astype(np.uint32)
        message = Message(np.concatenate([bottom, filled]), needed=len(filled))
        begun, spent = message.bits, []
        for number, batch in enumerate(batches):
            x = torch.from_numpy(
                np.stack([values(place) for place in batch.tiles]).astype(np.int32)
            )
            spent.append(self._codec(batch, number).push(message, x))
        return message, begun, spent

    def pop(self, batches: Sequence[_Batch], message: Message) -> Iterator[tuple[int, NDArray]]:
        """Places and values (C, h, w) of the tiles on a stack, the last batch first; what is left
        is what the stack began with."""
        for number, batch in reversed(list(enumerate(batches))):
            x = self._codec(batch, number).pop(message)
            if int(x.min()) < 0 or int(x.max()) > 255:
                raise ValueError("the stack decodes to values that no pixel has")
            yield from zip(batch.tiles, x.numpy().astype(np.uint8))


# ---------------------------------------------------------------- chunks


def checksum(image: Image) -> int:
    """CRC32 of an image (C, H, W), its shape and samples."""
    return zlib.crc32(np.ascontiguousarray(image).tobytes(), zlib.crc32(repr(image.shape).encode()))


def plain_file(image: Image) -> bytes:
    """The smallest plain file of an image, after a byte that says of which codec.

    Args:
        image: (C, H, W).

    Returns:
        What `read_plain_file` takes.
    """
    array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    files = []
    for number, codec in enumerate(PLAIN):
        # a codec that cannot store an image of this size, or changed it; PNG can
        with contextlib.suppress(ValueError, RuntimeError):
            files.append(bytes([number]) + encode_image(codec, array))
    return min(files, key=len)


def read_plain_file(data: bytes, shape: tuple[int, int, int]) -> Image:
    """The image of such a file.

    Args:
        data: what `plain_file` gave.
        shape: (C, H, W) that it has to have.

    Returns:
        (C, H, W) of uint8.

    Raises:
        ValueError: for a file of another codec or shape.
    """
    if not data or data[0] >= len(PLAIN):
        raise ValueError("a plain file of an unknown codec")
    array = decode_image(PLAIN[data[0]], data[1:], shape[1:] if shape[0] == 1 else (*shape[1:], 3))
    return array[None] if shape[0] == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


class PayloadBytes:
    """Reads a payload from the front; ValueError where it ends early.

    Args:
        data: the payload.
    """

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    @property
    def left(self) -> int:
        """Bytes that were not taken."""
        return len(self.data) - self.place

    def take(self, count: int) -> bytes:
        """The next bytes.

        Args:
            count: how many.

        Returns:
            As many.
        """
        if count > len(self.data) - self.place:
            raise ValueError("the payload ends too early")
        self.place += count
        return self.data[self.place - count : self.place]

    def varint(self) -> int:
        """The next number."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of the payload has no end")

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self.data) - self.place)


def plain_places(data: PayloadBytes, shapes: Sequence[tuple[int, int, int]]) -> list[int]:
    """Which images of a chunk are plain files: what every payload begins with.

    Args:
        data: the payload, at its beginning.
        shapes: (C, H, W) of the images.

    Returns:
        Their places, ascending.

    Raises:
        ValueError: for what no writer gives, more samples than a chunk may have among it.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if max(sizes) > MAX_SAMPLES or sum(sizes) > MAX_CHUNK_SAMPLES:
        raise ValueError("the chunk claims more samples than a writer puts into one")
    count = data.varint()
    if count > len(shapes):
        raise ValueError("more plain images than images")
    gaps = [data.varint() for _ in range(count)]
    places = (np.cumsum(gaps, dtype=object) - 1).tolist() if gaps else []
    if gaps and (min(gaps) < 1 or places[-1] >= len(shapes)):
        raise ValueError("plain images that the chunk does not have")
    return places


class _Coded(NamedTuple):
    """One way to code a chunk: what is plain, the stack of the rest, and what the rest took."""

    plain: set[int]
    tiles: list[_Tile]
    batches: list[_Batch]
    starters: int  # how many tiles are plain files
    start: bytes  # all plain files
    message: Message
    begun: int  # bits that the stack began with
    spent: NDArray[np.float64]  # bits by image
    ideal: float
    steps: dict[str, NDArray[np.float64]]

    def payload(self) -> bytes:
        head = varints(
            [
                len(self.plain),
                *np.diff([-1, *sorted(self.plain)]).tolist(),
                self.starters,
                len(self.start),
            ]
        )
        return head + (
            self.message.finished().astype("<u4").tobytes() if self.batches else self.start
        )


def encode_chunk(codec: ImageCodec, images: Sequence[Image], statistics: Statistics) -> bytes:
    """The payload of some images (C, H, W), uint8; `statistics` are brought up to date.

    Where images turn out to be shorter as plain files, the rest is coded again without them.
    """
    began, network = time.perf_counter(), sum(p.seconds for p in codec.predictors)
    may_be_plain = codec.settings.plain
    files = [plain_file(image) for image in images] if may_be_plain else []
    # what no model can beat is not tried: the start of a stack alone takes more
    hopeless = may_be_plain and 2 * sum(len(blob) + 3 for blob in files) < _least_start(
        codec, images
    )
    plain = {*range(len(images))} if hopeless else set()
    while True:
        coded = _code(codec, images, files, plain)
        worse = {
            i
            for i, bits in enumerate(coded.spent)
            if may_be_plain and i not in plain and bits > 8 * len(files[i])
        }
        if not worse:
            break
        plain = plain | worse
    # few images: their start costs more than the model saves, or they are nothing but start
    if may_be_plain and (
        not coded.batches or len(coded.payload()) > sum(len(blob) + 3 for blob in files)
    ):
        coded = _code(codec, images, files, {*range(len(images))})
    _enter(statistics, codec, images, coded)
    statistics.seconds += time.perf_counter() - began
    statistics.network_seconds += sum(p.seconds for p in codec.predictors) - network
    return coded.payload()


def _least_start(codec: ImageCodec, images: Sequence[Image]) -> float:
    """Bytes that have to lie on the stack before the smallest of the images' first tiles."""
    boxes = (codec.tiles([image.shape])[0].box for image in images)
    return min(codec.start_need((codec.channels, b.height, b.width)) / 8 for b in boxes)


def _code(
    codec: ImageCodec, images: Sequence[Image], files: Sequence[bytes], plain: set[int]
) -> _Coded:
    """Code a chunk with these images plain."""
    tiles = codec.tiles([image.shape for image in images], without=plain)
    starters = (
        _starters(codec, images, tiles, sum(len(files[i]) for i in plain))
        if codec.settings.plain
        else []
    )
    start = b"".join(
        varints([len(blob)]) + blob for blob in [*(files[i] for i in sorted(plain)), *starters]
    )
    batches = codec.batches(tiles, range(len(starters), len(tiles)))
    message, begun, took = codec.push(
        batches, lambda place: codec.cut(images[tiles[place].image], tiles[place]), start
    )
    spent, ideal = np.zeros(len(images)), 0.0
    steps: dict[str, NDArray[np.float64]] = {}
    for batch, scales in zip(batches, took):
        for name, part in scales.items():
            np.add.at(spent, [tiles[place].image for place in batch.tiles], part.bits.sum(axis=0))
            steps[name] = steps.get(name, 0.0) + part.bits.sum(axis=1)
            ideal += float(part.ideal.sum())
    for tile, blob in zip(tiles, starters):
        spent[tile.image] += 8 * len(blob)
    return _Coded(plain, tiles, batches, len(starters), start, message, begun, spent, ideal, steps)


def _enter(
    statistics: Statistics, codec: ImageCodec, images: Sequence[Image], coded: _Coded
) -> None:
    """Add a chunk to the statistics."""
    starting = [tile.image for tile in coded.tiles[: coded.starters]]
    modelled = {tile.image for tile in coded.tiles[coded.starters :]}
    net = coded.message.bits - coded.begun if coded.batches else 0
    stack = 32 * len(coded.message.finished()) if coded.batches else 0
    statistics.image_bits |= {
        statistics.images + i: float(coded.spent[i]) for i in sorted(modelled - {*starting})
    }
    statistics.chunks += 1
    statistics.plain_images += len(coded.plain)
    statistics.model_images += len(modelled)
    statistics.start_tiles += coded.starters
    statistics.images, statistics.dims = (
        statistics.images + len(images),
        statistics.dims + sum(image.size for image in images),
    )
    for tile in coded.tiles[coded.starters :]:
        statistics.model_dims += (
            tile.box.height
            * tile.box.width
            * (len(images[tile.image]) if codec.channels == 3 else 1)
        )
    statistics.model_bits += net
    statistics.ideal_bits += coded.ideal
    statistics.plain_bits += 8 * len(coded.start)
    statistics.start_bits += stack - net - 8 * len(coded.start) if coded.batches else 0
    statistics.container_bits += 8 * len(coded.payload()) - (
        stack if coded.batches else 8 * len(coded.start)
    )
    for name, row in coded.steps.items():
        statistics.steps[name] = statistics.steps.get(name, 0.0) + row


def _starters(
    codec: ImageCodec, images: Sequence[Image], tiles: Sequence[_Tile], bytes_there: int
) -> list[bytes]:
    """Plain files of the first tiles, as many as pay: each costs a little more than the model would
    take, and saves what it brings of the bits that the first batch has to start from."""
    found: list[bytes] = []
    for tile in tiles:
        need = codec.start_need((codec.channels, tile.box.height, tile.box.width)) / 8 - bytes_there
        part = codec.cut(images[tile.image], tile)
        blob = plain_file(part[:1] if len(images[tile.image]) == 1 else part)
        if need < len(blob) / 4 or need <= 0:
            break
        found.append(blob)
        bytes_there += len(blob)
    return found


def decode_chunk(
    codec: ImageCodec, shapes: Sequence[tuple[int, int, int]], payload: bytes
) -> list[Image]:
    """The images (C, H, W) of a payload; ValueError where it is not one of this codec."""
    data = PayloadBytes(payload)
    plain = {*plain_places(data, shapes)}
    tiles = codec.tiles(shapes, without=plain)
    starters, length = data.varint(), data.varint()
    if starters > len(tiles) or length > len(payload):
        raise ValueError("more first tiles, or longer plain files, than there can be")
    batches = codec.batches(tiles, range(starters, len(tiles)))
    # those of plain files are replaced below
    images = [
        np.zeros((0, 0, 0) if i in plain else shape, np.uint8) for i, shape in enumerate(shapes)
    ]
    start = data.rest()
    if batches:
        if len(start) % 4:
            raise ValueError("a stack that is no whole number of words")
        message = Message(np.frombuffer(start, "<u4").astype(np.uint32), sealed=False)
        for place, values in codec.pop(batches, message):
            codec.paste(images[tiles[place].image], tiles[place], values)
        begun = message.words().astype("<u4").tobytes()
        padded = length + -length % 4
        start = begun[len(begun) - padded : len(begun) - padded + length] if padded else b""
    if len(start) != length:
        raise ValueError("the plain files end too early")
    data = PayloadBytes(start)
    for i in sorted(plain):
        images[i] = read_plain_file(data.take(data.varint()), shapes[i])
    for tile in tiles[:starters]:
        channels = 1 if codec.channels == 1 or shapes[tile.image][0] == 1 else 3
        part = read_plain_file(
            data.take(data.varint()), (channels, tile.box.height, tile.box.width)
        )
        codec.paste(
            images[tile.image], tile, np.broadcast_to(part, (codec.channels, *part.shape[1:]))
        )
    if data.rest():
        raise ValueError("more plain files than images")
    return images
