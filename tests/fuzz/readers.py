"""The readers of the package: a sound sample for each, what of it is attacked, how it is read.

What is not here reads no file of a user: spectrograms are synthesised, and the photographs, the
slide and the archive of CIFAR-10 are compared with checksums of the package's own first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from PIL import Image

from pcdm_lib.coding import Archive, Settings, compress
from pcdm_lib.coding.container import DamagedFile
from pcdm_lib.coding.extract import targets
from pcdm_lib.data import sets
from pcdm_lib.data.files import image_size, read_image
from pcdm_lib.data.images import read_rgb
from pcdm_lib.experiments import results_files
from pcdm_lib.models import checkpoints, kept, presets, pretrained
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.models.config import Config, ModelConfig, TrainingConfig

from . import damage

# what a reader gave: pixels, an error that it raised for a part, or a line that it said
Found = np.ndarray | Exception | str
Note = bytes | Exception | str
Files = Mapping[str, bytes]
Read = Callable[[Path], Iterator[Found]]
TIME = 1_000_000_000  # of change, of every file: what was made of files must fit them


@dataclass(frozen=True)
class Attack:
    """A file of a sample that is damaged: its name, who forges it, whether checksums cover it, so
    that no accident gives other pixels, whether not even a forger can give others (`sealed`), and
    how many of its first bytes are attacked (0: all)."""

    file: str
    forger: damage.Forger | None = None
    checked: bool = True
    sealed: bool = False
    part: int = 0


@dataclass(frozen=True)
class Reader:
    """A sound sample by relative names, what of it is damaged, what reads the folder where it lies,
    and digests of all that it may give."""

    files: Files
    attacks: tuple[Attack, ...]
    read: Read
    truth: frozenset[bytes] = frozenset()


def noted(item: Found) -> Note:
    """A digest for an array, which may be large; all else as it is."""
    if not isinstance(item, np.ndarray):
        return item
    found = hashlib.sha256(f"{item.shape}".encode())
    found.update(np.ascontiguousarray(item).data)
    return found.digest()


def attempt(read: Callable[..., Any], *arguments: Any) -> Iterator[Found]:
    """What one call gives, or its error: other calls are tried all the same."""
    try:
        found = read(*arguments)
    except Exception as error:
        yield error
    else:
        if isinstance(found, (torch.Tensor, np.ndarray)):
            yield np.asarray(found)


def place(folder: Path, files: Files) -> None:
    """Write a sample, every file of the same age."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        os.utime(folder / name, (TIME, TIME))


def lying(folder: Path) -> Files:
    """The files under a folder, by relative names."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# ---------------------------------------------------------------- images


def colours(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Smooth images (count, side, side, 3), no two alike."""
    steps = np.random.default_rng(seed).normal(0, 4, (count, side, side, 3))
    return np.clip(steps.cumsum(1) + 128, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def picture(*calls: Callable[[Path], Any]) -> Read:
    """What reads a single image file, by each of these functions."""

    def read(folder: Path) -> Iterator[Found]:
        for call in calls:
            yield from attempt(call, folder / "a")

    return read


def square(path: Path) -> torch.Tensor:
    """As an image of a user is taken beside a data set's."""
    return sets.read_square(path, 8)


def pictures() -> Iterator[tuple[str, Reader]]:
    """Single image files. A large one is read once, so that its seconds are one reading's."""
    pixels = colours(1, 24)[0]
    exif = Image.Exif()
    exif[0x112] = 6
    everything = image_size, read_image, read_rgb, square
    for name, content, calls in (
        ("PNG, to compress", encoded(pixels), (image_size, read_image)),
        ("PNG, upright", encoded(pixels, exif=exif), (read_rgb,)),
        ("PNG, grey", encoded(pixels[..., 0], optimize=True), (square,)),
        ("JPEG", encoded(pixels, "JPEG", exif=exif), everything),
        ("WEBP", encoded(pixels, "WEBP", exif=exif), everything),
    ):
        attack = Attack("a", damage.png_forged) if "PNG" in name else Attack("a", checked=False)
        yield name, Reader({"a": content}, (attack,), picture(*calls))


def dataset(name: str, **options: Any) -> Read:
    """What reads a data set, image after image."""

    def read(folder: Path) -> Iterator[Found]:
        data = sets.load_data(name.format(folder), root=folder, download=False, **options)
        for images in (data.train, data.heldout):  # a large image has millions of patches
            yield from images[:200].numpy()

    return read


def folders() -> Iterator[tuple[str, Reader]]:
    """Folders of images."""
    pixels = colours(5, 24)
    files = {f"a/{i}.png": encoded(image) for i, image in enumerate(pixels[:3])}
    files |= {"a/3.jpg": encoded(pixels[3], "JPEG"), "a/4.webp": encoded(pixels[4], "WEBP")}
    attacks = tuple(
        Attack(f, damage.png_forged) if f.endswith("png") else Attack(f, checked=False)
        for f in files
    )
    yield "folder:", Reader(files, attacks, dataset("folder:{}/a", size=8))
    yield "crops:", Reader(files, attacks, dataset("crops:{}/a?train=grid&margin=0", size=8))
    names = ("i/train/a/0.png", "i/train/1.png", "i/val/2.png")
    files = {name: encoded(image) for name, image in zip(names, colours(3, 136, seed=1))}
    attacks = tuple(Attack(name, damage.png_forged) for name in names)
    yield "imagenet128:", Reader(files, attacks, dataset("imagenet128:{}/i"))


# ---------------------------------------------------------------- published sets


def published() -> Iterator[tuple[str, Reader]]:
    """CIFAR-10, SVHN and downsampled ImageNet, as they are published and unpacked."""
    pixels = colours(12, 32).transpose(0, 3, 1, 2)
    rows = pixels.reshape(12, -1)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    files = {
        f"cifar-10-batches-bin/{name}": b"".join(b"\0" + row.tobytes() for row in rows[i : i + 2])
        for i, name in zip(range(0, 12, 2), names)
    }
    attacks = tuple(Attack(name, checked=False) for name in files)
    yield "CIFAR-10", Reader(files, attacks, dataset("cifar10"))
    for kind in ("compressed", "plain"):
        pressed = kind == "compressed"
        sides = (("train", 4), ("test", 3))
        files = {f"svhn/{side}_32x32.mat": _mat(pixels[:k], pressed) for side, k in sides}
        attacks = tuple(Attack(f, damage.mat_forged, checked=pressed) for f in files)
        yield f"SVHN, {kind}", Reader(files, attacks, dataset("svhn"))
    files = {"train_32x32.tar": _tar(pixels[:4]), "valid_32x32.tar": _tar(pixels[4:7], "valid")}
    attacks = tuple(Attack(name, damage.tar_forged(damage.png_forged)) for name in files)
    old, new = dataset("imagenet32-old"), dataset("imagenet32-new")
    yield "ImageNet, tar", Reader(files, attacks, old)
    yield "ImageNet, cache", _cached(files, old)
    folders = "Imagenet32_train_npz", "Imagenet32_val_npz"
    unpacked = {f"{folders[0]}/train_data_batch_1.npz": _batch(rows[:3])}
    unpacked[f"{folders[1]}/val_data.npz"] = _batch(rows[5:7])
    inner = damage.zip_forged(damage.npy_forged)
    attacks = tuple(Attack(name, inner) for name in unpacked)
    yield "ImageNet, npz", Reader(unpacked, attacks, new)
    files = {
        f"{folder}.zip": damage._zipped({name: content}, 8, "")
        for folder, (name, content) in zip(folders, unpacked.items())
    }
    attacks = tuple(Attack(name, damage.zip_forged(inner)) for name in files)
    yield "ImageNet, zip", Reader(files, attacks, new)


def _mat(pixels: np.ndarray, pressed: bool) -> bytes:
    file = io.BytesIO()
    labels = np.arange(1, len(pixels) + 1, dtype=np.uint8)[:, None]
    content = {"X": pixels.transpose(2, 3, 1, 0), "y": labels}
    scipy.io.savemat(file, content, do_compression=pressed)
    return file.getvalue()


def _tar(pixels: np.ndarray, split: str = "train") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i, image in enumerate(pixels):
            content = encoded(image.transpose(1, 2, 0))
            info = tarfile.TarInfo(f"{split}_32x32/{i}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _batch(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, data=rows, labels=np.arange(len(rows)))
    return file.getvalue()


def _cached(files: Files, read: Read) -> Reader:
    """With the decoded images that the first reading leaves. Their pixels are mapped, not compared,
    so only what says how many there are is attacked."""
    with tempfile.TemporaryDirectory() as folder:
        place(Path(folder), files)
        list(read(Path(folder)))
        everything = lying(Path(folder))
    attacks = tuple(
        Attack(f, damage.json_forged) if f.endswith("json") else Attack(f, part=128)
        for f in everything
        if f not in files
    )
    return Reader(everything, attacks, read)


# ---------------------------------------------------------------- models

TINY = ModelConfig(image_shape=(3, 8, 8), channels=(8,), blocks=1, attention=False)


def cascade(config: ModelConfig) -> Cascade:
    """A model whose weights are plain numbers."""
    made = presets.build(config)
    with torch.no_grad():
        for number, (_, p) in enumerate(sorted(made.named_parameters())):
            k = torch.arange(p.numel(), dtype=torch.float64).reshape(p.shape) + 17 * number
            p.copy_((torch.remainder(k * 0.6180339887, 1.0) - 0.5) * 0.3)
    return made.eval()


CASCADE = cascade(TINY)
DIRECT = cascade(presets.preset("tiny", "direct", (3, 16, 16)).model)


def weights_of(made: Cascade) -> np.ndarray:
    """All of a model's numbers."""
    return np.concatenate([v.numpy().ravel() for v in made.state_dict().values()])


def read_kept(folder: Path) -> Iterator[Found]:
    """A model beside a `.pcdm` file."""
    yield weights_of(pretrained.open_model([str(folder / "m")])[0])


def read_run(folder: Path) -> Iterator[Found]:
    """A run's newest checkpoint and its log."""
    yield from attempt(checkpoints.read_log, folder)
    yield weights_of(pretrained.open_model([str(folder)])[0])


def read_shipped(folder: Path) -> Iterator[Found]:
    """A model with a card."""
    yield weights_of(pretrained.load_pretrained("m", root=folder))


def _model_attacks(files: Files, sealed: bool) -> tuple[Attack, ...]:
    return tuple(
        Attack(f, damage.json_forged, checked=False)
        if f.endswith("json")
        else Attack(f, damage.safetensors_forged, checked=sealed, sealed=sealed)
        for f in files
        if not f.endswith((".pt", ".jsonl"))
    )


def models() -> Iterator[tuple[str, Reader]]:
    """Folders of weights."""
    config = Config("tiny", "wavelet", TINY, TrainingConfig()).to_dict()
    header = {"format": 1, "config": config, "seed": 0, "scales": list(CASCADE.names), "step": 1}
    header |= {"data": {"label": "some", "train_sha256": "t"}, "provenance": [], "seconds": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        kept.keep(CASCADE, [header], Path(folder) / "m")
        files = dict(lying(Path(folder)))
    yield "kept model", Reader(files, _model_attacks(files, False), read_kept)
    inner = "checkpoints/step-00000001"
    run = {f"{inner}/config.json": json.dumps(header).encode(), f"{inner}/state.pt": b""}
    for file, content in files.items():
        if file.endswith("safetensors"):
            run[f"{inner}/ema.{Path(file).name}"] = content
    run["log.jsonl"] = b"".join(json.dumps({"step": i}).encode() + b"\n" for i in range(9))
    attacks = (*_model_attacks(run, False), Attack("log.jsonl"))
    yield "run", Reader(run, attacks, read_run)
    settings = presets.preset("tiny", "direct", (3, 16, 16)).to_dict()
    with tempfile.TemporaryDirectory() as folder:
        facts = {**header, "config": settings, "scales": list(DIRECT.names)}
        kept.keep(DIRECT, [facts], Path(folder) / "m")
        direct = lying(Path(folder))
    yield "kept model, direct", Reader(direct, _model_attacks(direct, False), read_kept)
    files = {**files, "m/config.json": json.dumps({"config": config}).encode()}
    sums = {Path(f).name: {"sha256": hashlib.sha256(c).hexdigest()} for f, c in files.items()}
    card = {"format": 1, "name": "m", "files": sums, "training": [], "data": header["data"]}
    attacks = _model_attacks(files, True) + (Attack("m/card.json", damage.json_forged, False),)
    files["m/card.json"] = json.dumps(card).encode()
    yield "shipped model", Reader(files, attacks, read_shipped)


# ---------------------------------------------------------------- archives and results


def archive_reader(made: Cascade, level: int = 0) -> Read:
    """As `pcdm decompress` reads an archive, at 1 / 2^level of the sides; no image may be written
    outside of its folder."""

    def read(folder: Path) -> Iterator[Found]:
        yield from read_archive(folder, made, level)

    return read


def read_archive(folder: Path, made: Cascade, level: int) -> Iterator[Found]:
    """See `archive_reader`."""
    with Archive(folder / "a.pcdm") as archive:
        yield from archive.reader.damage
        archive.reader.layout()
        out = folder / "out"
        for path in targets(archive.names(), out, rename=True).paths.values():
            assert Path(os.path.normpath(path)).is_relative_to(out), f"{path} lies elsewhere"
        archive.prepare(made)
        for found in archive.previews(level) if level else archive.images():
            yield found if isinstance(found, DamagedFile) else found[1]


def archives() -> Iterator[tuple[str, Reader]]:
    """`.pcdm` files."""
    pixels = colours(7, 20)
    images = [(f"image-{i:03d}.png", image) for i, image in enumerate(pixels[:4, :10, :10])]
    large = [*images[:3], ("large.png", pixels[5])]
    images += [("grey", pixels[4, :9, :8, 0]), ("a/black.png", np.zeros((5, 7, 3), np.uint8))]
    quick = Settings(steps=2, batch=4, chunk_tiles=2)
    plain = dataclasses.replace(quick, plain=False)
    pieces = dataclasses.replace(quick, piece=3 * 10 * 10)
    for name, some, settings, made, level in (
        (".pcdm, as it is", images, quick, CASCADE, 0),
        (".pcdm, by the model", images, plain, CASCADE, 0),
        (".pcdm, in pieces", large, pieces, CASCADE, 0),
        (".pcdm, direct", images, plain, DIRECT, 0),
        (".pcdm, direct, in pieces", large, dataclasses.replace(pieces, plain=False), DIRECT, 0),
        (".pcdm, direct, small pictures", large, plain, DIRECT, 2),
    ):
        with tempfile.TemporaryDirectory() as folder:
            compress(some, Path(folder) / "a.pcdm", made, "tiny", settings)
            files = lying(Path(folder))
        # the picture of a chunk that is cut short comes before the checksum could be compared
        attack = Attack("a.pcdm", damage.archive_forged, checked=not level, sealed=not level)
        yield name, Reader(files, (attack,), archive_reader(made, level))


def read_results(folder: Path) -> Iterator[Found]:
    """As `pcdm tables` reads them."""
    results, problems = results_files.read_results(folder)
    yield from map(ValueError, problems)
    for result in results_files.in_order(results):
        yield results_files.summary_line(result)
        results_files.scale_shares(result)
        if result.scores is not None:
            yield result.scores


def results() -> Iterator[tuple[str, Reader]]:
    """What runs write of their scores."""
    table = {"base": {"total": 1.5}, "details1": {"total": 2.0}, "total": {"total": 3.5}}
    scored = {"bpd": 3.5, "se_images": 0.02, "se_noise": 0.001, "images": 4, "weights": "EMA"}
    session = {"machine": "a machine", "commit": "0123456789abcdef"}
    record: dict[str, Any] = {
        "format": 2,
        "config": presets.preset("tiny").to_dict(),
        "data": {"label": "some", "name": "cifar10", "train_sha256": "t", "heldout_sha256": "h"},
        "training": {"steps": 100, "seconds": 600.0, "budget": {"minutes": 10.0}, "seed": 0},
        "evaluation": {**scored, "table": table},
        "provenance": session,
    }
    record["training"]["sessions"] = [session]
    file = io.BytesIO()
    np.savez(file, bpd=np.array([3.25, 3.5, 3.75, 3.5]))
    files = {"r/results.json": json.dumps(record).encode(), "r/scores.npz": file.getvalue()}
    attacks = (
        Attack("r/results.json", damage.json_forged, checked=False),
        Attack("r/scores.npz", damage.zip_forged(damage.npy_forged)),
    )
    yield "results", Reader(files, attacks, read_results)


def all_readers() -> dict[str, Reader]:
    """Every reader with what its sound sample gives; AssertionError where one gives an error."""
    found = {}
    for group in (archives, models, pictures, folders, published, results):
        for name, reader in group():
            with tempfile.TemporaryDirectory() as folder:
                place(Path(folder), reader.files)
                sound = [noted(item) for item in reader.read(Path(folder))]
            assert not any(isinstance(item, Exception) for item in sound), f"{name}: {sound}"
            truth = frozenset(item for item in sound if isinstance(item, bytes))
            found[name] = dataclasses.replace(reader, truth=truth)
    return found
