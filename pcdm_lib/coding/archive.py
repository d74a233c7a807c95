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

The header names the model and a digest of its weights and settings, so that a file is never decoded
by another model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pcdm_lib import records
from pcdm_lib.coding.bits_back import FRACTION, PREDICTION
from pcdm_lib.coding.chunks import (
    _CODING,
    MAX_SAMPLES,
    Image,
    ImageCodec,
    Settings,
    Statistics,
    checksum,
    decode_chunk,
    encode_chunk,
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
from pcdm_lib.coding.tiles import Box, pieces, plan
from pcdm_lib.models.cascade import Cascade

# of an image in pieces: 357 megapixels in colour. It lies whole in memory where it is read or
# written, and a stranger's file must not ask for any amount.
MAX_WHOLE_SAMPLES = 1 << 30


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
    codec = ImageCodec(cascade, settings, device, network_batch, on_evaluation)
    header = {
        "model": model,
        "digest": digest(cascade),
        "coding": _CODING,
        "steps": settings.steps,
        "fineness": settings.fineness,
        "batch": settings.batch,
        "side": codec.side,
        "precision": settings.precision,
        "tables": codec.tables,
    }
    if settings.precision == "float32":
        header["machine"] = machine(device)
    statistics = Statistics()
    written: list[bytes] = []

    def check(file: Path) -> None:
        with Reader(file) as reader:
            found = [
                hashlib.sha256(reader.chunk(info.number)[1]).digest() for info in reader.chunks
            ]
        if reader.damage or found != written:
            raise NotVerified(
                f"{path} was not written: what the disk gave back is not what was sent to it"
            )

    with Writer(path, header, check if verify else None) as writer:
        for entries, chunk in _chunks(codec, images):
            payload = encode_chunk(codec, chunk, statistics)
            if verify:
                began = time.perf_counter()
                back = decode_chunk(codec, [image.shape for image in chunk], payload)
                wrong = [
                    entry.name
                    for entry, a, b in zip(entries, chunk, back)
                    if not np.array_equal(a, b)
                ]
                if wrong:
                    raise NotVerified(
                        f"{path} was not written: {', '.join(wrong[:3])} did not decode to what "
                        f"was given; please report this"
                    )
                statistics.verify_seconds += time.perf_counter() - began
            written.append(hashlib.sha256(payload).digest())
            writer.add_chunk(entries, payload)
            statistics.container_bits -= 8 * len(payload)
            statistics.extra_pieces += sum(
                entry.piece is not None and entry.piece[:2] != (0, 0) for entry in entries
            )
    statistics.container_bits += 8 * writer.bytes_written
    return statistics


def check_model(cascade: Cascade, settings: Settings) -> None:
    """ValueError where no file can be written with this model and these settings."""
    ImageCodec(cascade, settings)
    digest(cascade)


def work(cascade: Cascade, settings: Settings, sizes: Iterable[tuple[int, int]]) -> int:
    """Network evaluations that images of these sizes (height, width) take, once through and none of
    them plain: for a progress bar."""
    side, channels = settings.side or max(cascade.image_shape[1:]), cascade.image_shape[0]
    tiles = sum(
        len(plan(box.height, box.width, side))
        for height, width in sizes
        for box in pieces((channels, height, width), side, settings.piece, MAX_SIDE)
    )
    return settings.steps * len(cascade.specs) * tiles


def _chunks(
    codec: ImageCodec, images: Iterable[tuple[str, NDArray]]
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
        tiles, samples = tiles + len(codec.tiles([image.shape])), samples + image.size
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
        self.path, self.reader = Path(path), Reader(path)
        header = self.reader.header
        try:
            self.model, self.digest = str(header["model"]), str(header["digest"])
            self._tables, self._machine, self._coding = (
                int(header["tables"]),
                header.get("machine"),
                int(header["coding"]),
            )
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
        self._codec: ImageCodec | None = None

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()

    def names(self) -> list[str]:
        """The names of all images whose chunk headers can be read."""
        found: dict[str, None] = {}
        for info in self.reader.chunks:
            with contextlib.suppress(DamagedFile):
                found |= dict.fromkeys(e.name for e in self.reader.entries(info.number))
        return [*found]

    def prepare(
        self,
        cascade: Cascade,
        device: torch.device | str = "cpu",
        network_batch: int | None = None,
        on_evaluation: Callable[[int], None] | None = None,
    ) -> ImageCodec:
        """Make a model ready to decode this file; WrongModel where it is another one, or the
        machine cannot decode it."""
        if self._coding != _CODING:
            raise WrongModel(
                f"{self.path} uses version {self._coding} of the coding, this package reads "
                f"{_CODING}: use the version that wrote it"
            )
        found = digest(cascade)
        if found != self.digest:
            raise WrongModel(
                f"{self.path} was written with the model {self.model!r} of digest {self.digest}, "
                f"this one has {found}: "
                "give the very model that wrote it (of a run that was trained further, the "
                "checkpoint of then: RUN/checkpoints/step-...)"
            )
        if self.settings.precision == "float32" and self._machine != machine(device):
            raise WrongModel(
                f"{self.path} is a float32 file, which only the machine that wrote it can decode: "
                f"{self._machine}; this is {machine(device)}"
            )
        self._codec = ImageCodec(cascade, self.settings, device, network_batch, on_evaluation)
        if self._codec.tables != self._tables:
            raise WrongModel(
                f"{self.path}: this machine computes other tables for the same model and steps, "
                f"so it cannot decode the file; please report this"
            )
        return self._codec

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
            images = decode_chunk(self._codec, [entry.shape for entry in entries], payload)
        except (ValueError, ArithmeticError, LookupError, MemoryError) as error:
            raise DamagedFile(
                f"{self.path}, chunk {number + 1}: {names} cannot be decoded ({error}), though "
                f"the bytes are as they were written: "
                "please report this"
            ) from error
        for entry, image in zip(entries, images):
            if checksum(image) != entry.checksum:
                raise DamagedFile(
                    f"{self.path}: {entry.name!r} does not decode to the image that was written, "
                    f"so this machine's arithmetic or "
                    "libraries differ from those that wrote it: decode on that machine, and "
                    "please report this"
                )
        return [(entry.name, _as_given(image)) for entry, image in zip(entries, images)]

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
