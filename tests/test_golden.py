"""Golden files: this version computes, writes and saves what an earlier one did.

`tests/golden/` holds:

    figures.json      bits per dimension, samples, digests of models, losses of training
    tensors.json.gz   names and shapes of the tensors of models
    images.npz        the images of the `.pcdm` files
    *.pcdm            images, written by each shipped model of photographs
    run.tar.xz        the folder of a training run of six steps

Two kinds of comparison. What is stored (files, weights, names of tensors) is read to the same
values on every machine. What is computed in floating point is exactly the same where the
environment (processor, instruction set, threads, versions) is that of the recording. Elsewhere bits
per dimension agree to 1e-6, losses of training to 1e-3, and files of images are only decoded.

`python tests/golden/make.py` records everything anew, and does so only where a change is meant.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from pcdm_lib.coding import Archive, Settings, compress
from pcdm_lib.coding.archive import digest
from pcdm_lib.data import load_data
from pcdm_lib.likelihood import evaluate
from pcdm_lib.models import build, load_cascade, load_pretrained, preset
from pcdm_lib.training import Trainer

GOLDEN = Path(__file__).resolve().parent / "golden"
SHIPPED = ("cifar10-subset-wavelet", "photos32-laplacian", "photos32-vdm", "photos32-wavelet")
SYSTEMS = ("wavelet", "laplacian", "standard", "vdm")
# Other schedules than the preset's own: learned shapes, learned endpoints, one for all scales.
VARIANTS: dict[str, dict[str, Any]] = {
    "monotone": {"schedule": "monotone"},
    "monotone, endpoints": {"schedule": "monotone", "learn_endpoints": True},
    "learned_linear": {"schedule": "learned_linear"},
    "linear, shared": {"schedule": "linear", "shared_schedule": True},
    "learned_linear, shared": {"schedule": "learned_linear", "shared_schedule": True},
    "monotone, shared": {"schedule": "monotone", "shared_schedule": True},
}
CODED = ("photos32-vdm", "photos32-wavelet", "photos32-laplacian")
FEW_STEPS = Settings(steps=8, plain=False)  # all by the model, however many bits so few steps take
# Images so small that plain files of them are long: the model wins most, a plain codec some.
MIXED = Settings(steps=32, batch=4, chunk_tiles=8)
SHAPE = (3, 8, 8)


# ---- the environment


def environment() -> dict[str, Any]:
    """What float32 arithmetic and the plain codecs depend on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()  # of the first processor
        pairs = (line.partition(":")[::2] for line in lines)
        facts = {key.strip(): value.strip() for key, value in pairs}
        processor = ", ".join(facts.get(key, "?") for key in ("model name", "cpu family", "model"))
    versions = {name: metadata.version(name) for name in ("numpy", "pillow", "imagecodecs")}
    return {
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **versions,
    }


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((GOLDEN / "figures.json").read_text())


@pytest.fixture(scope="module")
def listed() -> dict[str, Any]:
    return json.loads(gzip.decompress((GOLDEN / "tensors.json.gz").read_bytes()))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A copy of the saved run."""
    shutil.unpack_archive(GOLDEN / "run.tar.xz", tmp_path / "saved", filter="data")
    return tmp_path / "saved"


@pytest.fixture(scope="module")
def exact(figures: dict[str, Any]) -> bool:
    """Whether this is the environment of the recording."""
    return environment() == figures["environment"]


def assert_same(found: Any, expected: Any, exact: bool, rel: float = 1e-6) -> None:
    """Nested figures and texts: floats exactly or to `rel`, all else exactly."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key], exact, rel)
    elif isinstance(expected, float) and not exact:
        assert found == pytest.approx(expected, rel=rel, abs=rel)
    else:
        assert found == expected


# ---- what is recorded: every function gives what JSON holds without loss


def bits(
    cascade: torch.nn.Module, images: torch.Tensor, steps: int | None = None
) -> dict[str, Any]:
    """Bits per dimension: the total, and every term of every scale."""
    result = evaluate(cascade, images, repeats=2, times_per_image=2, seed=0, steps=steps)
    return {"bpd": result.bpd, "se_noise": result.se_noise, "table": result.table()}


def scores(name: str) -> dict[str, Any]:
    """A shipped model on held-out photographs, in continuous time and in ten steps."""
    cascade, images = load_pretrained(name), load_data("photos").heldout[:6]
    return {"continuous": bits(cascade, images), "10 steps": bits(cascade, images[:2], 10)}


def samples(name: str) -> str:
    """The sha256 of two images that a shipped model draws in six steps."""
    found = load_pretrained(name).sample(2, 6, torch.Generator().manual_seed(0)).images
    return hashlib.sha256(found.to(torch.uint8).numpy().tobytes()).hexdigest()


def tensors(module: torch.nn.Module) -> list[str]:
    """Names and shapes of a module's tensors in their order, `name 3x4`."""
    return [f"{name} {'x'.join(map(str, v.shape))}" for name, v in module.state_dict().items()]


def tiny(system: str, changes: dict[str, Any] | None = None) -> torch.nn.Module:
    """The tiny preset of a system, with another schedule where `changes` say so."""
    return build(preset("tiny", system).override(changes or {}).model)


def initial(system: str) -> str:
    """A digest of the weights that training starts from."""
    return digest(tiny(system))


def training_images() -> torch.Tensor:
    """40 smooth images (40, 3, 8, 8) by integer arithmetic: the same everywhere."""
    i, c, y, x = np.ogrid[:40, :3, :8, :8]
    return torch.from_numpy(
        ((37 * i + 5 * y * (i % 5) + 3 * x * (i % 7) + 11 * c) % 200 + 28).astype(np.uint8)
    )


def trainer(run: Path, system: str = "wavelet", resume: bool = False, **changes: Any) -> Trainer:
    settings = {"channels": 2, "batch_size": 8, "dropout": 0.1, "warmup_steps": 3, **changes}
    config = preset("tiny", system, SHAPE).override(settings)
    return Trainer(config, training_images(), run, seed=5, resume=resume, data={"label": "golden"})


def train(run: Path, steps: int, **options: Any) -> dict[str, Any]:
    """Train up to `steps`; the last loss, and a checksum of the folder's weights."""
    trainer(run, **options).run(steps=steps, progress=False, log_every=2)
    losses = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["scales"]
    return {"losses": losses, "weights": weights(run)}


def weights(run: Path) -> str:
    """The sha256 of the weights of a run's newest checkpoint, raw and averaged."""
    found = hashlib.sha256()
    for path in sorted(sorted((run / "checkpoints").iterdir())[-1].glob("*.safetensors")):
        for name, value in sorted(safetensors.torch.load_file(path).items()):
            found.update(f"{path.name} {name} {tuple(value.shape)}".encode())
            found.update(value.numpy().astype("<f4").tobytes())
    return found.hexdigest()


RUNS: dict[str, dict[str, Any]] = {
    **{system: {"system": system} for system in SYSTEMS},
    "adamw, monotone": {"optimiser": "adamw", "schedule": "monotone", "learn_endpoints": True},
    "shared": {"schedule": "learned_linear", "shared_schedule": True},
    "edm": {"weighting": "edm", "preconditioning": "gaussian", "features": "none"},
}


def saved_bits(run: Path) -> dict[str, Any]:
    """The bound of the saved run's averaged weights."""
    cascade, _ = load_cascade(run)
    return bits(cascade, training_images()[:8])


def stored_images(which: str) -> list[tuple[str, np.ndarray]]:
    """The images of the files whose names begin so, "photos" or "small"."""
    with np.load(GOLDEN / "images.npz", allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    return [(name, image) for name, image in found.items() if name.startswith(which)]


# By the file's name: model, settings, images.
FILES = {name: (name, FEW_STEPS, "photos") for name in CODED}
FILES["mixed"] = ("photos32-vdm", MIXED, "small")


# ---- recording


def record() -> None:
    """Write all golden files."""
    torch.set_num_threads(1)
    _record_images()
    for name, (model, settings, which) in FILES.items():
        path = GOLDEN / f"{name}.pcdm"
        print(name, compress(stored_images(which), path, load_pretrained(model), model, settings))
    with tempfile.TemporaryDirectory() as folder:
        runs = _record_runs(Path(folder))
    found = {
        "environment": environment(),
        "photos": {p: _sha256(getattr(load_data("photos"), p)) for p in ("train", "heldout")},
        "scores": {name: scores(name) for name in SHIPPED},
        "samples": {name: samples(name) for name in SHIPPED},
        "digests": {name: digest(load_pretrained(name)) for name in SHIPPED},
        "initial": {system: initial(system) for system in SYSTEMS},
        **runs,
    }
    (GOLDEN / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    lists = {
        "shipped": {name: tensors(load_pretrained(name)) for name in SHIPPED},
        "tiny": {system: tensors(tiny(system)) for system in SYSTEMS},
        "schedules": {name: tensors(tiny("wavelet", change)) for name, change in VARIANTS.items()},
    }
    (GOLDEN / "tensors.json.gz").write_bytes(gzip.compress(json.dumps(lists).encode(), mtime=0))


def _record_runs(work: Path) -> dict[str, Any]:
    """Train, save the first run, and resume it."""
    started = train(work / "run", 6)
    (work / "run" / ".lock").unlink(missing_ok=True)
    shutil.make_archive(str(GOLDEN / "run"), "xztar", work / "run")
    found = {
        "six steps": started,
        "bits": saved_bits(work / "run"),
        "ten steps": train(work / "run", 10, resume=True),
    }
    return {"run": found, "runs": {n: train(work / n, 6, **options) for n, options in RUNS.items()}}


def _record_images() -> None:
    """Patches of photographs, odd sizes beside them; and images of a few pixels."""
    heldout = load_data("photos").heldout.permute(0, 2, 3, 1).numpy()
    generator = np.random.default_rng(0)
    images = {
        "photos 32x32 a": heldout[0],
        "photos 32x32 b": heldout[150],
        "photos grey 9x7": heldout[40, :9, :7, 1],
        "photos 11x19": heldout[80, :11, :19],
    }
    images |= {f"small {i}": heldout[10 * i, :4, :4] for i in range(8)}
    images |= {
        "small flat": np.full((8, 8, 3), 77, np.uint8),
        "small grey 5x3": generator.integers(0, 256, (5, 3), np.uint8),
    }
    np.savez_compressed(GOLDEN / "images.npz", **images)


def _sha256(images: torch.Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


# ---- tests


def test_the_photographs(figures: dict[str, Any]) -> None:
    found = load_data("photos")
    for part, expected in figures["photos"].items():
        assert _sha256(getattr(found, part)) == expected


@pytest.mark.parametrize("name", SHIPPED)
def test_bits_per_dimension(figures: dict[str, Any], exact: bool, name: str) -> None:
    assert_same(scores(name), figures["scores"][name], exact)


@pytest.mark.parametrize("name", SHIPPED)
def test_samples(figures: dict[str, Any], exact: bool, name: str) -> None:
    found = samples(name)
    assert not exact or found == figures["samples"][name]


@pytest.mark.parametrize("name", SHIPPED)
def test_tensors_and_digest_of_shipped_models(
    figures: dict[str, Any], listed: dict[str, Any], name: str
) -> None:
    cascade = load_pretrained(name)
    assert tensors(cascade) == listed["shipped"][name]
    assert digest(cascade) == figures["digests"][name]


@pytest.mark.parametrize("system", SYSTEMS)
def test_tensors_of_new_models(
    figures: dict[str, Any], listed: dict[str, Any], exact: bool, system: str
) -> None:
    assert tensors(tiny(system)) == listed["tiny"][system]
    assert not exact or initial(system) == figures["initial"][system]


@pytest.mark.parametrize("name", VARIANTS)
def test_tensors_of_schedules(listed: dict[str, Any], name: str) -> None:
    assert tensors(tiny("wavelet", VARIANTS[name])) == listed["schedules"][name]


@pytest.mark.parametrize("name", FILES)
def test_files_decode_to_the_pixels(name: str) -> None:
    model, _, which = FILES[name]
    images = stored_images(which)
    with Archive(GOLDEN / f"{name}.pcdm") as file:
        assert file.model == model and file.names() == [key for key, _ in images]
        file.prepare(load_pretrained(model))
        found = list(file.images())
    assert len(found) == len(images)
    for (key, image), (_, back) in zip(images, found):
        assert back.dtype == np.uint8 and np.array_equal(back, image), key


@pytest.mark.parametrize("name", FILES)
def test_files_are_written_to_the_byte(tmp_path: Path, exact: bool, name: str) -> None:
    """And the model codes what it should: the photographs all, the images of few pixels mostly."""
    model, settings, which = FILES[name]
    images, path = stored_images(which), tmp_path / "again.pcdm"
    statistics = compress(images, path, load_pretrained(model), model, settings, verify=False)
    if name == "mixed":
        assert statistics.plain_images and statistics.start_tiles
        assert statistics.model_images >= len(images) / 2
    else:
        assert statistics.model_images == len(images)
    assert not exact or path.read_bytes() == (GOLDEN / f"{name}.pcdm").read_bytes()


def test_a_saved_run_loads_and_scores(figures: dict[str, Any], exact: bool, saved: Path) -> None:
    assert weights(saved) == figures["run"]["six steps"]["weights"]
    assert_same(saved_bits(saved), figures["run"]["bits"], exact)


def test_a_saved_run_is_resumed(figures: dict[str, Any], exact: bool, saved: Path) -> None:
    """Optimiser, random streams and place too: four more steps end at the same weights."""
    found = train(saved, 10, resume=True)
    assert len((saved / "log.jsonl").read_text().splitlines()) == 5
    assert_same_training(found, figures["run"]["ten steps"], exact)


@pytest.mark.parametrize("name", RUNS)
def test_training(figures: dict[str, Any], exact: bool, tmp_path: Path, name: str) -> None:
    assert_same_training(train(tmp_path / "run", 6, **RUNS[name]), figures["runs"][name], exact)


def assert_same_training(found: dict[str, Any], expected: dict[str, Any], exact: bool) -> None:
    """Six steps of an optimiser enlarge rounding: elsewhere only the loss is compared, loosely."""
    assert_same(found["losses"], expected["losses"], exact, rel=1e-3)
    assert not exact or found["weights"] == expected["weights"]
