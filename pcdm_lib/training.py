"""The training loop: AdamW, warm-up, EMA, clipping, a NaN guard, checkpoints, resume, a log.

Each scale has its own optimiser and its own random stream, so scales trained apart get the same weights as scales trained
together. A run lives in a folder:

    config.json                          the configuration, the data, the seed
    log.jsonl                            one line every few steps
    checkpoints/step-00001234/           config.json, {raw,ema}.<scale>.safetensors, state.pt
"""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pcdm_lib import records
from pcdm_lib.cascade import Cascade
from pcdm_lib.batches import BatchSampler, random_flip
from pcdm_lib.presets import Config, build, differences

FORMAT = 1


class TrainingDiverged(FloatingPointError):
    """Loss or gradient was not finite; the weights before that step were saved."""


class CheckpointMismatch(ValueError):
    """A checkpoint that belongs to another configuration, data set or version."""


@dataclass
class ScaleTrainer:
    """What one scale needs to train: a module that holds its network and schedule, optimiser, EMA, random streams."""

    index: int
    name: str
    module: nn.ModuleDict
    ema: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    sampler: BatchSampler
    generator: torch.Generator  # noise and times, on the device
    flips: torch.Generator
    dropout_state: Tensor

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def streams(self) -> dict[str, Any]:
        """Where the random streams stand; cheap enough for every step."""
        return {"sampler": self.sampler.state_dict(), "generator": self.generator.get_state(), "flips": self.flips.get_state(),
                "dropout": self.dropout_state}

    def load_streams(self, state: Mapping[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self.generator.set_state(state["generator"])
        self.flips.set_state(state["flips"])
        self.dropout_state = state["dropout"]


class Trainer:
    """Trains the chosen scales of a configuration on uint8 images.

    Args:
        config: model and training. images: uint8 (N, C, H, W). run_dir: the run's folder.
        data: JSON-able facts about the images; they are part of what a resumed run must agree with.
        scales: names of the scales to train, all by default. device: where.
        resume: continue from the newest checkpoint of run_dir where there is one. Without it a folder that holds a run is
            refused, so that nothing is overwritten.
    """

    def __init__(self, config: Config, images: Tensor, run_dir: Path | str, *, data: Mapping[str, Any] | None = None, seed: int = 0,
                 scales: Sequence[str] | None = None, device: torch.device | str = "cpu", resume: bool = False):
        self.config, self.images, self.run_dir, self.seed = config, images, Path(run_dir), seed
        self.device = torch.device(device)
        self.cascade = build(config.model, seed, scales).to(self.device)
        self.cascade.check_images(images)
        self.map_check(images)
        self.identity = {"format": FORMAT, "config": config.to_dict(), "data": dict(data or {}), "seed": seed,
                         "scales": list(self.cascade.networks)}
        self.step, self.seconds, self.rate, self.budget = 0, 0.0, 0.0, {}
        self._fit(images)
        self.scales = [self._scale(i, s.name) for i, s in enumerate(self.cascade.specs) if s.name in self.cascade.networks]
        self._open(resume)

    def map_check(self, images: Tensor) -> None:
        """One image through the map, so that a wrong dtype or range is refused before anything is written."""
        self.cascade.decompose(images[:1])

    # ---- set-up

    @torch.no_grad()
    def _fit(self, images: Tensor) -> None:
        for (z, _), spec in zip(self.cascade.decompose(images[:4096]), self.cascade.specs):
            if spec.name in self.cascade.networks:
                self.cascade.networks[spec.name].fit(z)

    def _scale(self, index: int, name: str) -> ScaleTrainer:
        training = self.config.training
        module = nn.ModuleDict({"network": self.cascade.networks[name], "schedule": self.cascade.schedules[index]})
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=training.learning_rate, betas=(training.beta1, training.beta2),
                                      weight_decay=training.weight_decay)
        ema = copy.deepcopy(module).requires_grad_(False)
        ema.eval()
        seed = self.seed * 1_000 + index
        with torch.random.fork_rng(devices=self._cuda()):
            torch.manual_seed(seed)
            dropout = self._dropout_state()
        return ScaleTrainer(index, name, module, ema, optimiser, BatchSampler(len(self.images), training.batch_size, seed),
                            torch.Generator(self.device).manual_seed(seed), torch.Generator().manual_seed(seed + 1), dropout)

    def _cuda(self) -> list[int]:
        return [self.device.index or 0] if self.device.type == "cuda" else []

    def _dropout_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def _set_dropout_state(self, state: Tensor) -> None:
        torch.cuda.set_rng_state(state, self.device) if self.device.type == "cuda" else torch.set_rng_state(state)

    def _open(self, resume: bool) -> None:
        for left in (self.run_dir / "checkpoints").glob(".step-*"):  # a kill while a checkpoint was being written
            shutil.rmtree(left, ignore_errors=True)
        newest = newest_checkpoint(self.run_dir)
        if newest is not None and resume:
            self._load(newest)
        elif newest is not None or (self.run_dir / "config.json").exists():
            if not resume:
                raise FileExistsError(f"{self.run_dir} holds a run already: resume it, or give another folder")
            self._check_identity(records.read_json(self.run_dir / "config.json"), self.run_dir)
        else:
            records.write_json(self.run_dir / "config.json", self.identity | {"provenance": records.provenance(self.device)})
        self._trim_log()

    # ---- the loop

    def run(self, *, minutes: float | None = None, steps: int | None = None, progress: bool = True, log_every: int = 10,
            checkpoint_minutes: float = 2.0, on_log: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Train until the run has had `minutes` of training or `steps` steps in all, earlier sessions counted in.

        Ends with a checkpoint, also when interrupted by the keyboard. A step trains every chosen scale once.

        Raises:
            TrainingDiverged: where loss or gradient is not finite; the state before that step is saved.
        """
        if (minutes is None) == (steps is None):
            raise ValueError("give a budget: either minutes or steps")
        if not (minutes or steps) > 0:
            raise ValueError(f"the budget must be positive, got minutes={minutes}, steps={steps}")
        self.budget = {"minutes": minutes} if steps is None else {"steps": steps}
        start, before, saved, whole = time.monotonic(), self.seconds, time.monotonic(), True
        bar = tqdm(total=round(60 * minutes) if steps is None else steps, disable=not progress, desc=f"training {self.cascade.map.name}",
                   unit="s" if steps is None else "step")
        totals: dict[str, list[float]] = {}
        self.cascade.train()
        try:
            while self._progress() < 1.0:
                losses = self._gradients()
                whole = False  # an interrupt from here on would leave some scales a step ahead of the others
                for name, figure in self._apply(losses).items():
                    totals.setdefault(name, []).append(figure)
                whole = True
                self.seconds = before + time.monotonic() - start
                done = min(round(self.seconds), bar.total) if steps is None else self.step
                bar.update(done - bar.n)
                if self.step % log_every == 0 or self._progress() >= 1.0:
                    record = self._record(totals)
                    totals = {}
                    bar.set_postfix_str(f"{record['bpd']:.3f} bpd")
                    if on_log is not None:
                        on_log(record)
                if time.monotonic() - saved > 60 * checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
        finally:
            bar.close()
            self.seconds = before + time.monotonic() - start
            if whole:
                self.save()

    def _progress(self) -> float:
        if "steps" in self.budget:
            return self.step / self.budget["steps"]
        return self.seconds / (60 * self.budget["minutes"])

    def _rate(self) -> float:
        training = self.config.training
        warm = min(1.0, (self.step + 1) / max(training.warmup_steps, 1))
        decay = 0.5 * (1 + math.cos(math.pi * min(self._progress(), 1.0))) if training.lr_decay == "cosine" else 1.0
        return training.learning_rate * warm * decay

    def _gradients(self) -> list[float]:
        """Loss and gradient of every scale. Changes no weight; where it fails, the random streams are put back too, so that the state
        is that of the step before."""
        before = [scale.streams() for scale in self.scales]
        try:
            with torch.random.fork_rng(devices=self._cuda()):
                return [self._gradient(scale) for scale in self.scales]
        except BaseException:
            for scale, streams in zip(self.scales, before):
                scale.load_streams(streams)
            raise

    def _gradient(self, scale: ScaleTrainer) -> float:
        training = self.config.training
        batch = self.images[scale.sampler.next()]
        if training.flips:
            batch = random_flip(batch, scale.flips)
        z, coarse = self.cascade.decompose(batch.to(self.device))[scale.index]
        self._set_dropout_state(scale.dropout_state)
        loss = self.cascade.loss(scale.index, z, coarse, scale.generator)
        scale.dropout_state = self._dropout_state()
        scale.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(scale.parameters(), training.clip))
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingDiverged(f"step {self.step}, scale {scale.name}: loss {value}, gradient norm {norm}. The state before this step is "
                                   f"kept in {self.run_dir}: continue from it with a lower learning_rate or clip in a new run")
        return value

    @torch.no_grad()
    def _apply(self, losses: Sequence[float]) -> dict[str, float]:
        """One optimiser and EMA step of every scale; the losses as shares of the image's bits per dimension."""
        self.rate, decay, figures = self._rate(), min(self.config.training.ema, (self.step + 1) / (self.step + 10)), {}
        for scale, loss in zip(self.scales, losses):
            for group in scale.optimiser.param_groups:
                group["lr"] = self.rate
            scale.optimiser.step()
            torch._foreach_lerp_(list(scale.ema.parameters()), list(scale.module.parameters()), 1 - decay)
            figures[scale.name] = loss * self.cascade.specs[scale.index].dims / (self.cascade.dims * math.log(2))
        self.step += 1
        return figures

    # ---- log

    def _record(self, totals: Mapping[str, list[float]]) -> dict[str, Any]:
        means = {name: sum(v) / len(v) for name, v in totals.items()}
        record = {"step": self.step, "seconds": round(self.seconds, 3), "images": self.step * self.config.training.batch_size,
                  "rate": self.rate, "bpd": sum(means.values()), "scales": means}
        with open(self.run_dir / "log.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def _trim_log(self) -> None:
        """Drop lines after the checkpoint, and one that a kill cut short: the resumed run writes them again."""
        path = self.run_dir / "log.jsonl"
        if path.exists():
            kept = [r for r in read_log(self.run_dir) if r["step"] <= self.step]
            records.write_bytes(path, "".join(json.dumps(r) + "\n" for r in kept).encode())

    # ---- checkpoints

    def save(self) -> Path:
        """Write a checkpoint of this step; it appears whole or not at all. The newest two are kept."""
        path = self.run_dir / "checkpoints" / f"step-{self.step:08d}"
        if path.exists():
            return path
        with records.new_folder(path) as folder:
            (folder / "config.json").write_text(json.dumps(self.identity | {"step": self.step, "seconds": self.seconds}, indent=2))
            for scale in self.scales:
                for kind, module in (("raw", scale.module), ("ema", scale.ema)):
                    tensors = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
                    safetensors.torch.save_file(tensors, folder / f"{kind}.{scale.name}.safetensors")
            torch.save({s.name: {"optimiser": s.optimiser.state_dict(), "streams": s.streams()} for s in self.scales}, folder / "state.pt")
        for old in _checkpoints(self.run_dir)[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def _check_identity(self, found: Mapping[str, Any], where: Path) -> None:
        lines = differences(json.loads(json.dumps(self.identity)), {k: found.get(k) for k in self.identity})
        if lines:
            raise CheckpointMismatch(f"{where} belongs to another run; give its settings or another folder:\n  " + "\n  ".join(lines))

    def _load(self, path: Path) -> None:
        header = records.read_json(path / "config.json")
        self._check_identity(header, path)
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        for scale in self.scales:
            _load_weights(scale.module, path / f"raw.{scale.name}.safetensors")
            _load_weights(scale.ema, path / f"ema.{scale.name}.safetensors")
            scale.optimiser.load_state_dict(state[scale.name]["optimiser"])
            scale.load_streams(state[scale.name]["streams"])
        self.step, self.seconds = int(header["step"]), float(header["seconds"])


# ---------------------------------------------------------------- reading what a run left


def _checkpoints(run_dir: Path | str) -> list[Path]:
    folder = Path(run_dir) / "checkpoints"
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)) if folder.is_dir() else []


def newest_checkpoint(run_dir: Path | str) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = _checkpoints(run_dir)
    return found[-1] if found else None


def read_log(run_dir: Path | str) -> list[dict[str, Any]]:
    """The lines of log.jsonl; a last line that was cut short is left out."""
    path = Path(run_dir) / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise ValueError(f"{path}, line {number + 1} is not JSON: the log was edited") from None
    return rows


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the checkpoint is not whole") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): it was cut short or is no safetensors file") from error
    own = module.state_dict()
    wrong = sorted({*own} ^ {*tensors}) + [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    if wrong:
        raise ValueError(f"{path} does not fit this network: {len(wrong)} tensors are missing, unexpected or of another shape, "
                         f"the first is {wrong[0]}")
    broken = [k for k, v in tensors.items() if not bool(torch.isfinite(v).all())]
    if broken:
        raise ValueError(f"{path} holds values that are not finite, in {broken[0]}")
    module.load_state_dict(tensors)


def load_cascade(*run_dirs: Path | str, weights: str = "ema", device: torch.device | str = "cpu") -> tuple[Cascade, dict[str, Any]]:
    """The cascade that one or more runs trained, from their newest checkpoints, and the first one's header.

    Several runs may each have trained some of the scales; together they must have all, and agree on the model.

    Args:
        run_dirs: folders of runs, or of checkpoints. weights: "ema" or "raw".
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}")
    if not run_dirs:
        raise ValueError("give at least one run folder")
    headers, folders = [], []
    for run in run_dirs:
        folder = Path(run) if (Path(run) / "state.pt").exists() else newest_checkpoint(run)
        if folder is None:
            raise ValueError(f"{run} holds no checkpoint: train first, or check the path")
        header = records.read_json(folder / "config.json")
        if header.get("format") != FORMAT:
            raise CheckpointMismatch(f"{folder} has format {header.get('format')}, this version reads {FORMAT}: use the version that wrote it")
        headers.append(header)
        folders.append(folder)
    configs = [Config.from_dict(h["config"]) for h in headers]
    for header, config in zip(headers[1:], configs[1:]):
        lines = differences(headers[0]["config"]["model"], header["config"]["model"])
        if config.model != configs[0].model:
            raise CheckpointMismatch("these runs trained different models:\n  " + "\n  ".join(lines))
    cascade = build(configs[0].model)
    loaded = set()
    for header, folder in zip(headers, folders):
        for name in header["scales"]:
            if name in loaded:
                raise CheckpointMismatch(f"scale {name} was trained by two of these runs: name only one of them")
            index = cascade.map.names().index(name)
            module = nn.ModuleDict({"network": cascade.networks[name], "schedule": cascade.schedules[index]})
            _load_weights(module, folder / f"{weights}.{name}.safetensors")
            loaded.add(name)
    missing = [n for n in cascade.map.names() if n not in loaded]
    if missing:
        raise CheckpointMismatch(f"no checkpoint for the scales {missing}: name the runs that trained them too")
    return cascade.to(device).eval(), headers[0]
