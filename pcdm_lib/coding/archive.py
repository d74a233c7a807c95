"""Images of any size and number <-> one `.pcdm` file.

A chunk holds some whole images, or a piece of one that is too large for a chunk, and can be read
alone. Its payload begins with varints: how many
images are plain and which, how many first tiles there are, and how many bytes the plain files take.
Then comes one stack of bits (coding/bits_back.py):

    top      the tiles, in batches of one shape. The first batches are small, so that the bits of
             one tile start the chunk, not those of a whole batch.
             plain files of whole images and of the first tiles: useful bits to start from, since
             the first latents have to be drawn from something
    bottom   pseudo-random words, as many as were used: the noise of the first latents where there
             are no useful bits

An image that the model would expand is stored as a plain file: PNG or JPEG XL, whichever is
smaller. A chunk whose images are all plain has no stack.

A direct cascade (models/direct_cascade.py) has no latents: its payloads are those of
coding/direct.py, and "coding" in the header says so.

The header names the model and a digest of its weights and settings, so that a file is never decoded
by another model.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pcdm_lib import outputs, records
from pcdm_lib.coding.bits_back import FRACTION, PREDICTION
from pcdm_lib.coding.chunks import (
    _CODING,
    MAX_SAMPLES,
    Image,
    ImageCodec,
    Settings,
    Statistics,
    checksum,
)
from pcdm_lib.coding.container import (
    MAX_SIDE,
    ChunkInfo,
    DamagedFile,
    Entry,
    Piece,
    Reader,
    Writer,
)
from pcdm_lib.coding.direct import CODING as DIRECT_CODING
from pcdm_lib.coding.direct import DirectCodec, aligned_pieces, blocks
from pcdm_lib.coding.single import SingleReader, is_single, pack
from pcdm_lib.coding.tiles import Box, pieces, plan
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.models.direct_cascade import DirectCascade

# of an image in pieces: 357 megapixels in colour. It lies whole in memory where it is read or
# written, and a stranger's file must not ask for any amount.
MAX_WHOLE_SAMPLES = 1 << 30
_LOST = "what the disk gave back is not what was sent to it"
MAX_PREVIEW = 4  # halvings of a small picture


class WrongModel(ValueError):
    """A file that another model, other weights or another machine wrote."""


class NotVerified(RuntimeError):
    """What was written does not decode to what was given."""


def digest(cascade: Cascade) -> str:
    """32 hexadecimal digits of everything that shapes a cascade's predictions: map, noise levels,
    settings of the networks, weights in float32."""
    facts: list[Any] = [
        repr(cascade.map),
        cascade.image_shape[0],
        cascade.max_value,
        FRACTION,
        PREDICTION,
    ]
    for scale in cascade.scales:
        denoiser, schedule = scale.denoiser, scale.schedule
        if not isinstance(denoiser, nn.Module):
            raise ValueError(
                f"the denoiser of {scale.name!r} is no network with weights, so no file can say "
                f"which it was: use pcdm_lib.coding.chain.TileCodec"
            )
        facts.append(
            [
                type(schedule).__name__,
                *(
                    getattr(denoiser, name, None)
                    for name in ("preconditioning", "features", "gamma_range", "multiple")
                ),
            ]
        )
    found = hashlib.sha256(json.dumps(facts).encode())
    for name, value in sorted(cascade.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)}".encode())
        found.update(
            np.ascontiguousarray(value.detach().cpu().to(torch.float32).numpy(), "<f4").tobytes()
        )
    return found.hexdigest()[:32]


def machine(device: torch.device | str = "cpu") -> str:
    """What a float32 file is tied to: processor, instruction set, threads, version of torch."""
    facts = records.provenance(device)
    return (
        f"{facts['machine']}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    )


# ---------------------------------------------------------------- files
def check_image(name: str, image: NDArray) -> Image:
    """A view (C, H, W) of an image (H, W) or (H, W, 3); ValueError for anything else but uint8."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise ValueError(
            f"{name}: files hold images of uint8, got "
            f"{getattr(image, 'dtype', type(image).__name__)}: convert it yourself, so that you "
            f"know what is lost"
        )
    if image.ndim not in (2, 3) or 0 in image.shape or image.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"{name}: expected a grey image (H, W) or a colour image (H, W, 3), got shape "
            f"{image.shape}"
        )
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def _as_given(image: Image) -> NDArray:
    return image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))


def compress(
    images: Iterable[tuple[str, NDArray]],
    path: Path | str,
    cascade: Cascade,
    model: str,
    settings: Settings | None = None,
    *,
    verify: bool = True,
    device: torch.device | str = "cpu",
    network_batch: int | None = None,
    on_evaluation: Callable[[int], None] | None = None,
) -> Statistics:
    """Write images to a file, chunk by chunk: memory does not grow with their number, and beyond
    `settings.piece` samples not with their size, but for the pixels given.

    Source: Sect. 6.3 of the paper.

    Args:
        images: names, all different, and arrays (H, W) or (H, W, 3) of uint8.
        path: of the file.
        cascade: the model, with networks for all scales.
        model: what the file calls the model, so that a reader can find it.
        settings: how the file is written.
        verify: decode every chunk and compare it before it counts, then read the whole file again
            before it gets its name.
        device: where the networks run.
        network_batch: tiles that a network sees at a time.
        on_evaluation: called with the number of tiles after each evaluation of a network, for
            progress.

    Returns:
        Where the bits of the file went.

    Raises:
        ValueError: for bad images or settings.
        NotVerified: where what was written does not decode to what was given.
        OverflowError: where the model's weights or schedule are broken; nothing is written then.
        FloatingPointError: likewise.

    Example:
        >>> from pcdm_lib.coding import Settings
        >>> model, image = pcdm.load_pretrained("photos32-wavelet"), np.zeros((32, 32, 3), np.uint8)
        >>> quick = Settings(steps=2)
        >>> _ = pcdm.compress([("black", image)], "a.pcdm", model, "photos32-wavelet", quick)
        >>> with pcdm.Archive("a.pcdm") as archive: print(archive.names())
        ['black']
    """
    settings = settings or Settings()
    codec = codec_of(cascade, settings, device, network_batch, on_evaluation)
    header = _header(codec, cascade, model)
    if isinstance(codec, ImageCodec) and settings.precision == "float32":
        header["machine"] = machine(device)
    statistics = Statistics()
    written: list[bytes] = []

    def check(file: Path) -> None:
        with Reader(file) as reader:
            found = [
                hashlib.sha256(reader.chunk(info.number)[1]).digest() for info in reader.chunks
            ]
        if reader.damage or found != written:
            raise NotVerified(f"{path} was not written: {_LOST}")

    coded: Iterable[tuple[list[Entry], bytes]] = (
        (entries, _coded(codec, (entries, chunk), path, statistics, verify))
        for entries, chunk in _chunks(codec, images)
    )
    if isinstance(codec, DirectCodec):
        first = [*itertools.islice(coded, 2)]
        file = _single(first, path, str(header["digest"]))
        if file is not None:
            _write_single(file, path, verify)
            statistics.container_bits = 8 * len(file) - statistics.model_bits
            return statistics
        coded = itertools.chain(first, coded)
    with Writer(path, header, check if verify else None) as writer:
        for entries, payload in coded:
            written.append(hashlib.sha256(payload).digest())
            writer.add_chunk(entries, payload)
            statistics.container_bits -= 8 * len(payload)
            statistics.extra_pieces += sum(
                entry.piece is not None and entry.piece[:2] != (0, 0) for entry in entries
            )
    statistics.container_bits += 8 * writer.bytes_written
    return statistics


def _single(
    first: Sequence[tuple[list[Entry], bytes]], path: Path | str, digest: str
) -> bytes | None:
    """The file of a single image, from the first two chunks; None where there are more images, or
    that form cannot hold it."""
    if len(first) != 1 or len(first[0][0]) != 1:
        return None
    ((entry,), payload) = first[0]
    return pack(path, digest, entry, payload)


def _write_single(file: bytes, path: Path | str, verify: bool) -> None:
    with outputs.whole_file(path) as out:
        out.write(file)
        out.flush()
        if verify and Path(out.name).read_bytes() != file:
            raise NotVerified(f"{path} was not written: {_LOST}")


def _coded(
    codec: ImageCodec | DirectCodec,
    images: tuple[list[Entry], list[Image]],
    path: Path | str,
    statistics: Statistics,
    verify: bool,
) -> bytes:
    """The payload of a chunk, decoded and compared where that is asked for."""
    entries, chunk = images
    payload = codec.encode(chunk, statistics)
    if verify:
        began = time.perf_counter()
        shapes: list[Any] = [image.shape for image in chunk]
        back = codec.decode(shapes, payload)
        wrong = [
            entry.name for entry, a, b in zip(entries, chunk, back) if not np.array_equal(a, b)
        ]
        if wrong:
            raise NotVerified(
                f"{path} was not written: {', '.join(wrong[:3])} did not decode to what was "
                f"given; please report this"
            )
        statistics.verify_seconds += time.perf_counter() - began
    return payload


def codec_of(
    cascade: Cascade,
    settings: Settings,
    device: torch.device | str = "cpu",
    network_batch: int | None = None,
    on_evaluation: Callable[[int], None] | None = None,
) -> ImageCodec | DirectCodec:
    """The codec of a model: with bits back for a diffusion cascade, without for a direct one."""
    if isinstance(cascade, DirectCascade):
        return DirectCodec(cascade, settings, device, on_evaluation)
    return ImageCodec(cascade, settings, device, network_batch, on_evaluation)


def _header(codec: ImageCodec | DirectCodec, cascade: Cascade, model: str) -> dict[str, Any]:
    """What a reader needs to know."""
    found: dict[str, Any] = {"model": model, "digest": digest(cascade)}
    if isinstance(codec, DirectCodec):
        return found | {"coding": DIRECT_CODING, "tables": codec.tables}
    settings = codec.settings
    return found | {
        "coding": _CODING,
        "steps": settings.steps,
        "fineness": settings.fineness,
        "batch": settings.batch,
        "side": codec.side,
        "precision": settings.precision,
        "tables": codec.tables,
    }


def check_model(cascade: Cascade, settings: Settings) -> None:
    """ValueError where no file can be written with this model and these settings."""
    codec_of(cascade, settings)
    digest(cascade)


def work(cascade: Cascade, settings: Settings, sizes: Iterable[tuple[int, int]]) -> int:
    """Network evaluations that images of these sizes (height, width) take, once through and none of
    them plain; for a direct model the blocks of all levels. For a progress bar."""
    if isinstance(cascade, DirectCascade):
        boxes = (box for size in sizes for box in aligned_pieces((3, *size), settings))
        return sum(blocks(box.height, box.width) for box in boxes)
    side, channels = settings.side or max(cascade.image_shape[1:]), cascade.image_shape[0]
    tiles = sum(
        len(plan(box.height, box.width, side))
        for height, width in sizes
        for box in pieces((channels, height, width), side, settings.piece, MAX_SIDE)
    )
    return settings.steps * len(cascade.specs) * tiles


def _chunks(
    codec: ImageCodec | DirectCodec, images: Iterable[tuple[str, NDArray]]
) -> Iterator[tuple[list[Entry], list[Image]]]:
    """Images in chunks: those that are small enough together, of the others a piece each."""
    entries: list[Entry] = []
    chunk: list[Image] = []
    tiles = samples = 0
    for name, given in images:
        image = check_image(name, given)
        boxes = codec.pieces(image.shape)
        if chunk and (
            len(boxes) > 1
            or samples + image.size > MAX_SAMPLES
            or tiles >= codec.settings.chunk_tiles
        ):
            yield entries, chunk
            entries, chunk, tiles, samples = [], [], 0, 0
        if len(boxes) > 1:
            yield from (_cut_out(name, image, box) for box in boxes)
            continue
        chunk.append(np.ascontiguousarray(image))
        entries.append(Entry(name, image.shape, checksum(chunk[-1])))
        tiles, samples = tiles + codec.weight(image.shape), samples + image.size
    if chunk:
        yield entries, chunk


def _cut_out(name: str, image: Image, box: Box) -> tuple[list[Entry], list[Image]]:
    """A piece as a chunk of its own."""
    part = np.ascontiguousarray(
        image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    )
    place = Piece(box.top, box.left, *image.shape[1:])
    return [Entry(name, part.shape, checksum(part), place)], [part]


class Archive:
    """A `.pcdm` file opened for reading.

    Args:
        path: of the file.

    Attributes:
        model: what the file calls its model.
        digest: of that model's weights.
        settings: how it was written.
        reader: the container underneath; `reader.damage` says what of it is damaged.

    Raises:
        DamagedFile: where the header cannot be read.

    Example:
        >>> from pcdm_lib.coding import Settings
        >>> model, image = pcdm.load_pretrained("photos32-wavelet"), np.zeros((32, 32, 3), np.uint8)
        >>> quick = Settings(steps=2)
        >>> _ = pcdm.compress([("black", image)], "a.pcdm", model, "photos32-wavelet", quick)
        >>> with pcdm.Archive("a.pcdm") as archive: print(archive.model, archive.names())
        photos32-wavelet ['black']
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.reader: Reader | SingleReader = SingleReader(path) if is_single(path) else Reader(path)
        header = self.reader.header
        try:
            self.model, self.digest = str(header["model"]), str(header["digest"])
            self._tables, self._machine, self._coding = (
                None if self.single else int(header["tables"]),
                header.get("machine"),
                int(header["coding"]),
            )
            self.settings = Settings()
            if not self.direct:
                self.settings = Settings(
                    int(header["steps"]),
                    float(header["fineness"]),
                    int(header["batch"]),
                    side=int(header["side"]),
                    precision=str(header["precision"]),
                )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            self.reader.close()
            raise DamagedFile(
                f"{path}: the header does not say how the file was written ({error}): get it anew"
            ) from error
        self._codec: ImageCodec | DirectCodec | None = None

    @property
    def single(self) -> bool:
        """Whether it is a file of one image that names its model by a digest alone."""
        return isinstance(self.reader, SingleReader)

    @property
    def direct(self) -> bool:
        """Whether a direct cascade wrote it, whose coarse levels can be read first."""
        return self._coding == DIRECT_CODING

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()

    def names(self, cut: bool = False) -> list[str]:
        """The names of all images whose chunk headers can be read; with `cut` also those of a chunk
        of which the file has only the beginning."""
        found: dict[str, None] = {}
        for info in self.reader.chunks:
            with contextlib.suppress(DamagedFile):
                found |= dict.fromkeys(e.name for e in self.reader.entries(info.number))
        part = self.reader.partial() if cut else None
        return [*found | dict.fromkeys(entry.name for entry in part[0])] if part else [*found]

    def prepare(
        self,
        cascade: Cascade,
        device: torch.device | str = "cpu",
        network_batch: int | None = None,
        on_evaluation: Callable[[int], None] | None = None,
    ) -> ImageCodec | DirectCodec:
        """Make a model ready to decode this file; WrongModel where it is another one, or the
        machine cannot decode it."""
        if self._coding not in (_CODING, DIRECT_CODING):
            raise WrongModel(
                f"{self.path} uses version {self._coding} of the coding, this package reads "
                f"{_CODING} and {DIRECT_CODING}: use the version that wrote it"
            )
        found = digest(cascade)
        if not self.wrote(found):
            raise WrongModel(
                f"{self.path} was written with the model {self.model!r} of digest {self.digest}, "
                f"this one has {found}: "
                "give the very model that wrote it (of a run that was trained further, the "
                "checkpoint of then: RUN/checkpoints/step-...)"
            )
        if self.direct != cascade.exact:
            raise WrongModel(f"{self.path} was written by a model of another kind")
        if self.settings.precision == "float32" and self._machine != machine(device):
            raise WrongModel(
                f"{self.path} is a float32 file, which only the machine that wrote it can decode: "
                f"{self._machine}; this is {machine(device)}"
            )
        self._codec = codec_of(cascade, self.settings, device, network_batch, on_evaluation)
        if self._tables is not None and self._codec.tables != self._tables:
            raise WrongModel(
                f"{self.path}: this machine computes other tables for the same model and steps, "
                f"so it cannot decode the file; please report this"
            )
        return self._codec

    def wrote(self, found: str) -> bool:
        """Whether a model of that digest wrote the file, as far as the file tells."""
        return found[: len(self.digest)] == self.digest if self.single else found == self.digest

    def chunk(self, number: int) -> list[tuple[str, NDArray]]:
        """Names and arrays (H, W) or (H, W, 3) of one chunk, without those before it: whole images,
        or pieces of one. DamagedFile naming the images where that fails."""
        if self._codec is None:
            raise ValueError("call prepare with the file's model first")
        entries, payload = self.reader.chunk(number)
        names = ", ".join(repr(entry.name) for entry in entries[:3]) + (
            f" and {len(entries) - 3} more" if len(entries) > 3 else ""
        )
        try:
            images = self._codec.decode([entry.shape for entry in entries], payload)
        except (ValueError, ArithmeticError, LookupError, MemoryError) as error:
            if self.single:  # nothing but the image's checksum covers its bytes
                raise self._not_whole(entries[0].name) from error
            raise DamagedFile(
                f"{self.path}, chunk {number + 1}: {names} cannot be decoded ({error}), though "
                f"the bytes are as they were written: "
                "please report this"
            ) from error
        for entry, image in zip(entries, images):
            if checksum(image) != entry.checksum:
                if self.single:
                    raise self._not_whole(entry.name)
                raise DamagedFile(
                    f"{self.path}: {entry.name!r} does not decode to the image that was written, "
                    f"so this machine's arithmetic or "
                    "libraries differ from those that wrote it: decode on that machine, and "
                    "please report this"
                )
        return [(entry.name, _as_given(image)) for entry, image in zip(entries, images)]

    def _not_whole(self, name: str) -> DamagedFile:
        return DamagedFile(
            f"{self.path} is damaged or cut short: {name!r} does not decode to the image that was "
            f"written; get a whole copy of the file"
        )

    def images(
        self, wanted: Sequence[str] | None = None
    ) -> Iterator[tuple[str, NDArray] | DamagedFile]:
        """All images, or those of the wanted names, in the order of the file; for a chunk that is
        damaged its error, and then the others. An image in pieces is decoded piece by piece."""
        chosen = None if wanted is None else {*wanted}
        for group in self._groups():
            if isinstance(group, DamagedFile):
                yield group
                continue
            entries = [entry for _, some in group for entry in some]
            if chosen is not None and not chosen & {entry.name for entry in entries}:
                continue
            try:
                if entries[0].piece:
                    found = [(entries[0].name, self._whole(group))]
                else:
                    found = self.chunk(group[0][0].number)
            except DamagedFile as error:
                yield error
                continue
            yield from (pair for pair in found if chosen is None or pair[0] in chosen)

    def previews(
        self, level: int, wanted: Sequence[str] | None = None
    ) -> Iterator[tuple[str, NDArray] | DamagedFile]:
        """All images at 1 / 2^level of their sides, or those of the wanted names: only the coarse
        levels are decoded. Of a file that is cut short, also the image that is not whole, where
        enough of it is there.

        Args:
            level: 1 for half the side, to MAX_PREVIEW.
            wanted: names.

        Yields:
            Names and arrays, rounded means of blocks; the error of what is damaged.

        Raises:
            ValueError: for a file of a diffusion model, which has no coarse levels in front.
        """
        codec = self._codec
        if not isinstance(codec, DirectCodec):
            raise ValueError(
                f"{self.path} was written by a diffusion model, whose file has no small pictures "
                f"in it: only a direct cascade's has (decompress the whole images instead)"
            )
        if not 1 <= level <= MAX_PREVIEW:
            raise ValueError(f"small pictures are at 1/2 to 1/{2**MAX_PREVIEW} of the side")
        whole: dict[str, NDArray] = {}
        for part in self._parts():
            if isinstance(part, DamagedFile):
                yield part
                continue
            entries, payload = part
            if wanted is not None and not {entry.name for entry in entries} & {*wanted}:
                continue
            try:
                found = codec.preview([entry.shape for entry in entries], payload, level)
            except (ValueError, ArithmeticError, LookupError, MemoryError) as error:
                yield DamagedFile(f"{self.path}: {entries[0].name!r} cannot be decoded ({error})")
                continue
            for entry, small in zip(entries, found):
                if small is None:
                    yield DamagedFile(
                        f"{self.path} is cut short: too little of {entry.name!r} is there for a "
                        f"picture at 1/{2**level}: ask for a smaller one"
                    )
                elif entry.piece is None:
                    yield entry.name, _as_given(small)
                else:
                    yield from self._placed(whole, entry, small, level)

    def _placed(
        self, whole: dict[str, NDArray], entry: Entry, small: Image, level: int
    ) -> Iterator[tuple[str, NDArray]]:
        """Put a piece into its small picture; the picture when the last piece is there."""
        place = entry.piece
        assert place is not None
        if place[:2] == (0, 0):
            sides = (-(-place.height >> level), -(-place.width >> level))
            if math.prod(sides) > MAX_WHOLE_SAMPLES:
                return
            whole.clear()
            whole[entry.name] = np.zeros((len(small), *sides), np.uint8)
        picture = whole.get(entry.name)
        if picture is None:
            return
        top, left = place.top >> level, place.left >> level
        picture[:, top : top + small.shape[1], left : left + small.shape[2]] = small
        bottom, right = place.top + entry.shape[1], place.left + entry.shape[2]
        if (bottom, right) == (place.height, place.width):
            yield entry.name, _as_given(picture)

    def _parts(self) -> Iterator[tuple[list[Entry], bytes] | DamagedFile]:
        """Entries and payload of every chunk, and what there is of one that is cut off."""
        for info in self.reader.chunks:
            try:
                yield self.reader.chunk(info.number)
            except DamagedFile as error:
                yield error
        cut = self.reader.partial()
        if cut is not None:
            yield cut

    def _groups(self) -> Iterator[list[tuple[ChunkInfo, list[Entry]]] | DamagedFile]:
        """The chunks that are decoded together: one by one, but for the pieces of an image."""
        group: list[tuple[ChunkInfo, list[Entry]]] = []
        for info in self.reader.chunks:
            try:
                entries = self.reader.entries(info.number)
            except DamagedFile as error:
                yield error
                continue
            piece = bool(entries[0].piece)
            if group and not (piece and entries[0].name == group[-1][1][0].name):
                yield group
                group = []
            group.append((info, entries))
            if not piece:
                yield group
                group = []
        if group:
            yield group

    def _whole(self, group: list[tuple[ChunkInfo, list[Entry]]]) -> NDArray:
        """The image of these pieces. All that can be checked is checked before the first of them is
        decoded."""
        entries = [entry for _, some in group for entry in some]
        name, (channels, *_), _, place = entries[0]
        assert place is not None
        height, width = place.height, place.width
        if channels * height * width > MAX_WHOLE_SAMPLES:
            raise DamagedFile(
                f"{self.path}: {name!r} is said to be {width}x{height} pixels, which is more than "
                f"an image of this package has: the file may be malicious"
            )
        if not _fills(entries, channels, height, width):
            raise DamagedFile(
                f"{self.path}: pieces of {name!r} are missing or damaged, and it cannot be "
                f"decoded: get a whole copy of the file"
            )
        for info, _ in group:
            self.reader.chunk(info.number)
        image = np.zeros((height, width) if channels == 1 else (height, width, 3), np.uint8)
        for info, some in group:
            for entry, (_, part) in zip(some, self.chunk(info.number)):
                assert entry.piece is not None
                top, left = entry.piece[:2]
                image[top : top + part.shape[0], left : left + part.shape[1]] = part
        return image


def _fills(entries: Sequence[Entry], channels: int, height: int, width: int) -> bool:
    """Whether pieces, row after row, make up such an image without a gap."""
    top = left = row = 0
    for entry in entries:
        if entry.piece != Piece(top, left, height, width) or entry.shape[0] != channels:
            return False
        if left and entry.shape[1] != row:
            return False
        row, left = entry.shape[1], left + entry.shape[2]
        if left == width:
            top, left = top + row, 0
    return (top, left) == (height, 0)
