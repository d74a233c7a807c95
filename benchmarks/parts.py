"""What is measured: each part is a function of the settings that returns one section of the
report."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pywt
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import transport
from benchmarks.steps import Autocast, LibraryStep, PlainStep, tf32
from benchmarks.timing import (
    CLOCKS,
    MIN_ROUNDS,
    Clock,
    Ratio,
    Stages,
    interleave,
    measure,
    quartiles,
    ratios,
)
from pcdm_lib.data.paths import home
from pcdm_lib.likelihood import evaluation as evaluation_module
from pcdm_lib.likelihood.evaluation import estimator_gain, paired_difference
from pcdm_lib.maps import MAPS, HaarWavelet, make_map
from pcdm_lib.models import Cascade, Config, preset
from pcdm_lib.models.presets import FULL_SIZE
from pcdm_lib.training import Trainer

PAPER_BATCH_ON_CPU = 1  # one step of 128 images takes minutes and tens of gigabytes there
PAPER_UPDATES = 2_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """What all parts share.

    Attributes:
        seconds: budget of one measurement.
        presets: those that `throughput` measures; the other parts measure the last one.
        updates: how many `paper` times.
        images: uint8 (N, C, H, W) to train on and to score.
    """

    device: torch.device
    seconds: float
    presets: tuple[str, ...]
    systems: tuple[str, ...]
    images: Tensor
    heldout: Tensor
    seed: int = 0
    updates: int = 10
    clock_kind: str = "wall"

    @property
    def clock(self) -> Clock:
        return Clock(self.device, self.clock_kind)

    @property
    def preset(self) -> str:
        """The preset of the parts that measure one."""
        return self.presets[-1]

    @property
    def two(self) -> tuple[str, ...]:
        """The systems of the parts that take long."""
        return self.systems[:2]

    def config(self, system: str, name: str | None = None) -> Config:
        """A preset for these images; the paper's batch is cut down on a CPU."""
        config = preset(name or self.preset, system, tuple(self.images.shape[1:]))
        if config.preset in FULL_SIZE and self.device.type == "cpu":
            return config.override({"batch_size": PAPER_BATCH_ON_CPU})
        return config


class Section(NamedTuple):
    """One table of the report: rows with the same keys, and what a reader must know of them."""

    title: str
    note: str
    rows: list[dict[str, Any]]


def _ratio_row(name: str, ratio: Ratio, baseline: str) -> dict[str, Any]:
    return {
        "variant": name,
        "seconds": ratio.seconds,
        f"ratio to {baseline}": ratio.median,
        "quartiles": f"{ratio.low:.3f} to {ratio.high:.3f}",
        "rounds": ratio.rounds,
    }


# ---------------------------------------------------------------- images a second, and where the
# time goes


def throughput(settings: Settings) -> Section:
    """Training by `Trainer` itself, evaluation by `evaluate` with one network evaluation an image
    and scale."""
    rows = []
    for name in settings.presets:
        for system in settings.systems:
            config = settings.config(system, name)
            steps, trainer = _train(settings, config, settings.seconds)
            low, middle, high = quartiles(steps)
            batch = config.training.batch_size
            part = settings.heldout[
                : max(batch, 64) if name not in FULL_SIZE or settings.device.type != "cpu" else 2
            ]
            score = functools.partial(
                evaluation_module.evaluate,
                trainer.cascade,
                part,
                repeats=1,
                times_per_image=1,
                device=settings.device,
            )
            times = measure(score, settings.seconds, settings.clock)
            parameters = sum(p.numel() for p in trainer.cascade.networks.parameters())
            rows.append(
                {
                    "preset": name,
                    "system": system,
                    "parameters": parameters,
                    "batch": batch,
                    "training images/s": batch / middle,
                    "quartiles": f"{batch / high:.4g} to {batch / low:.4g}",
                    "steps": len(steps),
                    "evaluation images/s": len(part) / quartiles(times)[1],
                }
            )
    return Section(
        "Images a second",
        "Training: `Trainer.run`, all scales. Evaluation: the whole bound with one noise level an "
        "image and scale; "
        "the default of `evaluate` takes 16.",
        rows,
    )


def _train(settings: Settings, config: Config, seconds: float) -> tuple[list[float], Trainer]:
    """Seconds of each step of a real run, at least MIN_ROUNDS after one that is not counted, and
    the trainer."""
    now = CLOCKS[settings.clock_kind]  # every log entry has waited for its losses

    def session(**budget: float) -> list[float]:
        stamps: list[float] = []
        trainer.run(
            **budget,
            progress=False,
            log_every=1,
            checkpoint_minutes=math.inf,
            on_log=lambda _: stamps.append(now()),
        )
        return [after - before for before, after in zip(stamps, stamps[1:])]

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            config,
            settings.images,
            Path(folder) / "run",
            seed=settings.seed,
            device=settings.device,
        )
        steps = session(steps=MIN_ROUNDS + 1)
        if trainer.seconds < seconds:
            steps += session(minutes=seconds / 60)
    return steps, trainer


@functools.lru_cache(maxsize=4)
def _trained(settings: Settings, config: Config) -> tuple[list[float], Trainer]:
    """A model that has had ten times the budget of a measurement; two parts share it."""
    return _train(settings, config, 10 * settings.seconds)


def stages(settings: Settings) -> Section:
    """Shares of a training step."""
    rows = []
    for system in settings.systems:
        config = settings.config(system)
        clock = Stages(settings.clock)
        step = LibraryStep(
            config, settings.images, settings.device, seed=settings.seed, stages=clock
        )
        step()
        clock.clear()
        count = len(measure(step, settings.seconds, settings.clock)) + 1
        seconds = clock.seconds()
        total = sum(seconds.values())
        rows.append(
            {"preset": config.preset, "system": system, "step seconds": total / count}
            | {k: v / total for k, v in seconds.items()}
        )
    kind = "CUDA events" if settings.device.type == "cuda" else f"{settings.clock_kind} time"
    return Section(
        "Where a training step's time goes",
        f"Shares of one, by {kind}. Bound without network: noise, preconditioning, "
        "lattice features and the loss, forward only.",
        rows,
    )


# ---------------------------------------------------------------- the map


def transform(settings: Settings) -> Section:
    """Maps, both ways, on integers and floats, against a copy; the float Haar step against wavelet
    packages."""
    count, sides = 256, tuple(settings.images.shape[1:])
    x = torch.randint(
        0,
        256,
        (count, *sides),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(settings.seed),
    ).to(settings.device)
    floats = x.float() / 127.5 - 1
    rows = []
    for name in MAPS:
        hierarchy = make_map(name, 0 if name == "vdm" else 1)
        integers, scales = hierarchy.analyse_integers(x), hierarchy.analyse(floats)
        whole = hierarchy.synthesise_integers(integers)
        actions = {
            "decompose (uint8 to int32)": (
                functools.partial(hierarchy.decompose, x),
                [x, *integers],
            ),
            "compose (int32)": (
                functools.partial(hierarchy.synthesise_integers, integers),
                [*integers, whole],
            ),
            "analyse (float32)": (functools.partial(hierarchy.analyse, floats), [floats, *scales]),
            "synthesise (float32)": (
                functools.partial(hierarchy.synthesise, scales),
                [*scales, floats],
            ),
        }
        # elsewhere every direction but the first is a view
        if not isinstance(hierarchy, HaarWavelet):
            actions = dict(list(actions.items())[:1])
        for direction, (action, touched) in actions.items():
            size = sum(v.numel() * v.element_size() for v in touched)
            rows.append(_against_copy(settings, f"{name}: {direction}", action, size))
    baselines = _haar_baselines(floats)
    ours = make_map("wavelet", 1)
    times = interleave(
        {
            "pcdm_lib": lambda: ours.analyse(floats),
            **{k: v for k, v in baselines.items() if v is not None},
        },
        _short(settings),
        settings.clock,
    )
    found, size = ratios(times, "pcdm_lib"), 2 * floats.numel() * 4
    for package in ("pcdm_lib", *baselines):
        row = {
            "what": f"float Haar step of {package}, over pcdm_lib's",
            "GB/s": None,
            "ratio": None,
            "quartiles": "not installed",
            "rounds": 0,
        }
        if package in found:
            r = found[package]
            row |= {
                "GB/s": size / r.seconds / 1e9,
                "ratio": r.median,
                "quartiles": f"{r.low:.3f} to {r.high:.3f}",
                "rounds": r.rounds,
            }
        rows.append(row)
    return Section(
        "Transform",
        f"{count} images of {'x'.join(map(str, sides))}. Bytes are those read and written once; "
        f"ratio: time over that of "
        "`Tensor.copy_` moving as many, in the same rounds. The last rows: time over that of this "
        "library's float Haar step "
        "(PyWavelets runs on the CPU in any case).",
        rows,
    )


def _short(settings: Settings) -> float:
    """A transform takes milliseconds, and there are many: a fifth of the budget is hundreds of
    rounds."""
    return settings.seconds / 5


def _against_copy(
    settings: Settings, name: str, action: Callable[[], object], size: int
) -> dict[str, Any]:
    source = torch.zeros(size // 2, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    r = ratios(
        interleave(
            {"copy": lambda: target.copy_(source), name: action}, _short(settings), settings.clock
        ),
        "copy",
    )[name]
    return {
        "what": name,
        "GB/s": size / r.seconds / 1e9,
        "ratio": r.median,
        "quartiles": f"{r.low:.3f} to {r.high:.3f}",
        "rounds": r.rounds,
    }


def _haar_baselines(floats: Tensor) -> dict[str, Callable[[], object] | None]:
    """The same step by other packages; None for one that is not installed. ptwt is no dependency of
    this project."""
    array, name = floats.cpu().numpy(), "ptwt"
    found: dict[str, Callable[[], object] | None] = {
        "PyWavelets": lambda: pywt.dwt2(array, "haar", mode="periodization", axes=(-2, -1)),
        name: None,
    }
    if importlib.util.find_spec(name) is not None:
        ptwt = importlib.import_module(name)
        found[name] = lambda: ptwt.wavedec2(floats, "haar", level=1, mode="zero")
    return found


# ---------------------------------------------------------------- cost against size, memory


def scaling(settings: Settings) -> Section:
    """One training step of the wavelet cascade while one thing at a time grows; every point in a
    process of its own."""
    base = settings.config("wavelet")
    rows, known = [], {}
    for what, value, changes in growing(base):
        config = base.override(changes)
        if config not in known:
            known[config] = _child(settings, config)
        point = known[config]
        rows.append(
            {
                "grows": what,
                "to": value,
                "parameters": point["parameters"],
                "step seconds": point["seconds"],
                "images/s": config.training.batch_size / point["seconds"],
                "peak MiB": point["peak"] / 2**20,
                "MiB before the first step": point["before"] / 2**20,
                "memory by": point["method"],
            }
        )
    return Section(
        "Cost of a training step, and peak memory",
        f"Preset `{base.preset}`, wavelet, in turn with one thing changed. Each "
        "point is a process of its own, since a process's peak never falls. Peak and before: the "
        "whole process on a CPU (PyTorch "
        "itself included), PyTorch's allocations on CUDA.",
        rows,
    )


def growing(base: Config) -> list[tuple[str, Any, dict[str, Any]]]:
    """What grows, to what, and the settings that make it so."""
    channels = base.model.channels
    return [
        *(("batch", n, {"batch_size": n}) for n in (4, 8, 16, 32, 64)),
        *(
            ("image side", n, {"image_shape": (base.model.image_shape[0], n, n)})
            for n in (16, 32, 48, 64)
        ),
        *(
            (
                "levels",
                n,
                {
                    "levels": n,
                    "gamma_max": (base.model.gamma_max[0],) + (base.model.gamma_max[-1],) * n,
                },
            )
            for n in (1, 2, 3)
        ),
        *(
            ("width", f"x{f:g}", {"channels": tuple(round(c * f) for c in channels)})
            for f in (0.5, 1, 2)
        ),
    ]


def _child(settings: Settings, config: Config) -> dict[str, Any]:
    request = {
        "config": config.to_dict(),
        "device": str(settings.device),
        "seconds": settings.seconds,
        "seed": settings.seed,
        "threads": torch.get_num_threads(),
        "clock": settings.clock_kind,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.point"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=home(),
    )
    if done.returncode:
        raise RuntimeError(
            f"measuring {config.model} in a child process failed (exit "
            f"{done.returncode}):\n{done.stderr.strip()[-2000:]}"
        )
    return json.loads(done.stdout)


# ---------------------------------------------------------------- comparisons


def training(settings: Settings) -> Section:
    """The library's VDM step against one written plainly, on the same U-Net."""
    config = settings.config("vdm")
    like = config.override(
        {
            "preconditioning": "none",
            "features": "vdm",
            "inputs": "plain",
            "schedule": "linear",
            "gamma_min": (-13.3,),
            "optimiser": "adamw",
        }
    )
    step = functools.partial(
        LibraryStep, images=settings.images, device=settings.device, seed=settings.seed
    )
    actions = {
        "plain PyTorch": PlainStep(config, settings.images, settings.device, seed=settings.seed),
        "library, plain VDM": step(like),
        "library, preset": step(config),
    }
    found = ratios(interleave(actions, settings.seconds, settings.clock), "plain PyTorch")
    return Section(
        "Training step against plain PyTorch",
        f"VDM, preset `{config.preset}`, batch {config.training.batch_size}. Plain: float "
        "images, independent times, AdamW without foreach, EMA in a loop, contiguous kernels. The "
        "library's second variant has the plain one's inputs, "
        "outputs and optimiser; the third is the preset: lattice features, preconditioning, Muon.",
        [_ratio_row(name, r, "plain PyTorch") for name, r in found.items()],
    )


def variants(settings: Settings) -> Section:
    """One choice at a time against the library's defaults."""
    config = settings.config("wavelet")
    step = functools.partial(
        LibraryStep, config, settings.images, settings.device, seed=settings.seed
    )
    actions: dict[str, Callable[[], object]] = {
        "default": step(),
        "default again": step(),
        "contiguous": step(channels_last=False),
        "bf16 autocast": step(wrap=Autocast),
        "AdamW in a loop": step(adamw="loop"),
        "AdamW foreach": step(adamw="foreach"),
        "AdamW fused": step(adamw="fused"),
        "EMA in a loop": step(foreach_ema=False),
    }
    if config.training.optimiser == "muon":
        actions["torch's Muon"] = step(torch_muon=True)
    if settings.clock_kind == "wall":  # processor time adds up over threads
        actions["scales side by side"] = step(
            threads=make_map(config.model.map, config.model.levels).num_scales
        )
    if settings.device.type == "cuda":
        actions |= {
            "TF32 nowhere": _precise(step(), "float32"),
            "TF32 everywhere": _precise(step(), "tf32"),
        }
    found = ratios(interleave(actions, settings.seconds, settings.clock), "default")
    return Section(
        "One choice at a time",
        f"Wavelet, preset `{config.preset}`, {torch.get_num_threads()} threads. Default: float32 "
        f"(on CUDA "
        "with torch's default, TF32 in convolutions), channels-last, the preset's optimiser, EMA "
        "by foreach, scales in turn. AdamW rows: AdamW "
        "for all weights, so what Muon costs is in them. *Default again* is the same thing twice: "
        "how far it lies from 1 is what noise does. Side by side: one thread a scale, torch's "
        "threads "
        "divided among them.",
        [_ratio_row(name, r, "default") for name, r in found.items()],
    )


def _precise(action: Callable[[], Any], kind: str) -> Callable[[], Any]:
    """The same with TF32 everywhere on CUDA (`tf32`) or nowhere (any other kind); torch's own
    default is convolutions only."""

    def run() -> Any:
        with tf32(kind == "tf32"):
            return action()

    return run


def compiled(settings: Settings) -> Section:
    """torch.compile of the U-Nets, with what it costs to compile; a failure is a row."""
    config = settings.config("wavelet")
    step = functools.partial(
        LibraryStep, config, settings.images, settings.device, seed=settings.seed
    )
    title = "torch.compile"
    note = (
        f"Wavelet, preset `{config.preset}`; the U-Nets alone are compiled. The first step, "
        f"which compiles, is counted apart."
    )
    fast = step(wrap=torch.compile)
    start = time.perf_counter()
    try:
        if settings.device.type == "cpu" and not any(
            shutil.which(name) for name in ("g++", "c++", "clang++", "cl")
        ):
            raise RuntimeError("no C++ compiler on the path")
        fast()
    except Exception as error:  # whatever the compiler says: it is the finding
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Section(
            title,
            note,
            [
                {
                    "variant": "compiled",
                    "seconds": None,
                    "ratio to default": None,
                    "quartiles": f"failed: {lines[0][:160]}",
                    "rounds": 0,
                    "first step, s": time.perf_counter() - start,
                }
            ],
        )
    first = time.perf_counter() - start
    found = ratios(
        interleave({"default": step(), "compiled": fast}, settings.seconds, settings.clock),
        "default",
    )
    return Section(
        title,
        note,
        [
            _ratio_row(name, r, "default")
            | {"first step, s": first if name == "compiled" else None}
            for name, r in found.items()
        ],
    )


# ---------------------------------------------------------------- evaluation


def evaluation(settings: Settings) -> Section:
    """How many more evaluations independent times need, on a model that has been trained for a
    short while."""
    rows = []
    for system in settings.two:
        config = settings.config(system)
        _, trainer = _trained(settings, config)
        group = min(64, len(settings.heldout))
        images = settings.heldout[: 2 * group]
        gain, factor = estimator_gain(
            trainer.cascade, images, group=group, seed=settings.seed, device=settings.device
        )
        rows.append(
            {
                "preset": config.preset,
                "system": system,
                "training steps": trainer.step,
                "images": len(images),
                "variance ratio": gain,
                "from": gain / factor,
                "to": gain * factor,
            }
        )
    return Section(
        "Stratified noise levels against independent ones",
        "Ratio of the Monte-Carlo variances of the mean bound: how many times "
        "as many network evaluations independent uniform times need for the same standard error. "
        "Two standard errors either way; "
        "raw weights after a few steps of training.",
        rows,
    )


def bf16_difference(
    cascade: Cascade, images: Tensor, device: torch.device, seed: int = 0, repeats: int = 4
) -> dict[str, float]:
    """bpd under bf16 autocast of the U-Nets less that in float32, for the same images, times and
    noise, with its standard error.

    Decoder, preconditioning and terms stay as they are; float32 is without TF32. `Monte-Carlo
    error` is the standard error of the float32 figure from the noise, which the difference is to be
    held against.
    """
    half = copy.deepcopy(cascade)
    for network in half.networks.values():
        network.net = Autocast(network.net)
    with tf32(False):
        full, low = (
            evaluation_module.evaluate(
                c, images, repeats=repeats, times_per_image=1, seed=seed, device=device
            )
            for c in (cascade, half)
        )
    difference, error = paired_difference(low, full)
    return {
        "float32 bpd": full.bpd,
        "bf16 bpd": low.bpd,
        "difference": difference,
        "its standard error": error,
        "Monte-Carlo error": full.se_noise,
    }


def bf16(settings: Settings) -> Section:
    """Whether the bound suffers from bf16."""
    rows = []
    for system in settings.two:
        config = settings.config(system)
        _, trainer = _trained(settings, config)
        found = bf16_difference(
            trainer.cascade, settings.heldout[:128], settings.device, settings.seed
        )
        rows.append(
            {"preset": config.preset, "system": system, "training steps": trainer.step} | found
        )
    return Section(
        "bf16 and the bound",
        "bf16 autocast of the U-Nets less float32 without TF32, the same images, times and noise; "
        "raw weights "
        "after a few steps. A difference well inside the Monte-Carlo error does no harm to a "
        "figure; one that is many of its own "
        "standard errors is a bias all the same.",
        rows,
    )


# ---------------------------------------------------------------- the device's peak, the paper's
# budget


def peak(settings: Settings) -> Section:
    """Floating-point operations of a step over its time, against the best of large matrix
    products."""
    limits = {kind: _matmul_peak(settings, kind) for kind in _precisions(settings.device)}
    rows = [
        {
            "what": f"matrix product, {kind}",
            "GFLOP": None,
            "GFLOP/s": limit / 1e9,
            "share of peak": 1.0,
        }
        for kind, limit in limits.items()
    ]
    for system in settings.two:
        config = settings.config(system)
        for kind, limit in limits.items():
            step = _precise(
                LibraryStep(
                    config, settings.images, settings.device, seed=settings.seed, wrap=_wrap(kind)
                ),
                kind,
            )
            with FlopCounterMode(display=False) as counter:
                step()
            flops = counter.get_total_flops()
            seconds = quartiles(measure(step, settings.seconds, settings.clock))[1]
            rows.append(
                {
                    "what": f"training step, {config.preset} {system}, {kind}",
                    "GFLOP": flops / 1e9,
                    "GFLOP/s": flops / seconds / 1e9,
                    "share of peak": flops / seconds / limit,
                }
            )
    return Section(
        "Share of the matrix-product peak",
        "Operations of convolutions, matrix products and attention that torch's FlopCounterMode "
        "counts, over the time of the whole step. Peak: the median of large square products on "
        "this device, so convolutions by other "
        "algorithms may pass it.",
        rows,
    )


def _precisions(device: torch.device) -> tuple[str, ...]:
    return ("float32", "tf32", "bf16") if device.type == "cuda" else ("float32", "bf16")


def _wrap(kind: str) -> type[Autocast] | None:
    return Autocast if kind == "bf16" else None


def _matmul_peak(settings: Settings, kind: str) -> float:
    side = 8192 if settings.device.type == "cuda" else 1024
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=settings.device, dtype=dtype) for _ in range(2))
    times = measure(
        _precise(functools.partial(torch.matmul, a, b), kind), settings.seconds, settings.clock
    )
    return 2 * side**3 / quartiles(times)[1]


def paper(settings: Settings) -> Section:
    """Time for a number of updates of the paper's CIFAR-10 networks, and what its budget would
    take."""
    rows = []
    for system in settings.two:
        config = settings.config(system, "paper-cifar10")
        full = preset("paper-cifar10", system).training.batch_size
        for kind in _precisions(settings.device):
            step = _precise(
                LibraryStep(
                    config, settings.images, settings.device, seed=settings.seed, wrap=_wrap(kind)
                ),
                kind,
            )
            measured = measure(
                lambda step=step: [step() for _ in range(settings.updates)],
                settings.seconds,
                settings.clock,
            )
            update = quartiles(measured)[1] / settings.updates * full / config.training.batch_size
            rows.append(
                {
                    "system": system,
                    "precision": kind,
                    "batch measured": config.training.batch_size,
                    "updates measured": settings.updates,
                    "seconds an update": update,
                    "minutes for 1,000": 1000 * update / 60,
                    "days for 2,000,000": PAPER_UPDATES * update / 86400,
                }
            )
    return Section(
        "The paper's CIFAR-10 preset",
        "All scales trained on this one device. 1,000 and 2,000,000 updates are extrapolated from "
        "those "
        "measured; where the batch measured is smaller than 128, the time is taken as "
        "proportional to it.",
        rows,
    )


# ---------------------------------------------------------------- earth mover's distances


def emd(settings: Settings) -> Section:
    """Exact and wavelet earth mover's distances on the processor: time against the number of
    pixels."""
    clock = Clock(torch.device("cpu"), settings.clock_kind)
    return Section(
        "Earth mover's distances",
        "White noise of equal positive and negative mass, square images. Exponent: the slope of "
        "log time against "
        "log pixels over all sides, by least squares; 1 is linear.",
        transport.times(settings.seconds, clock, settings.seed),
    )


PARTS: dict[str, Callable[[Settings], Section]] = {
    "throughput": throughput,
    "stages": stages,
    "transform": transform,
    "scaling": scaling,
    "training": training,
    "variants": variants,
    "compiled": compiled,
    "evaluation": evaluation,
    "bf16": bf16,
    "peak": peak,
    "emd": emd,
    "paper": paper,
}
