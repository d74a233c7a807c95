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
import pickle
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pcdm_lib import records
from pcdm_lib.checkpoints import FORMAT, CheckpointMismatch, checkpoints, load_weights, newest_checkpoint, read_log
from pcdm_lib.batches import BatchSampler, random_flip
from pcdm_lib.evaluate import bits_per_dim
from pcdm_lib.presets import Config, build, differences
from pcdm_lib.schedule import Schedule

_IDENTIFYING = ("train_sha256", "train_count")  # what a resumed run must have learned from; the rest of `data` is a record


class TrainingDiverged(FloatingPointError):
    """Loss or gradient was not finite; the weights before that step were saved."""


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


@dataclass
class SharedSchedule:
    """A learned schedule that belongs to all scales: its average over training and its own optimiser."""

    schedule: Schedule
    ema: nn.Module
    optimiser: torch.optim.Optimizer


def _average_of(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False).eval()


def _seed(*parts: int) -> int:
    """A seed for each of several streams, none of which starts like another."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class Trainer:
    """Trains the chosen scales of a configuration on uint8 images.

    Args:
        config: model and training. images: uint8 (N, C, H, W). run_dir: the run's folder.
        data: JSON-able facts about the images, kept with the run; a resumed run must agree on the training images' checksum.
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
        self.header = {"format": FORMAT, "config": config.to_dict(), "data": dict(data or {}), "seed": seed,
                       "scales": list(self.cascade.networks)}
        self.step, self.seconds, self.rate, self.budget, self.torn = 0, 0.0, 0.0, {}, False
        self._fit(images)
        self.shared = self._shared_schedule()
        self.scales = [self._scale(i, s.name) for i, s in enumerate(self.cascade.specs) if s.name in self.cascade.networks]
        self._open(resume)

    # ---- set-up

    @torch.no_grad()
    def _fit(self, images: Tensor) -> None:
        spread = images[:: max(1, len(images) // 4096)]
        for (z, _), spec in zip(self.cascade.decompose(spread), self.cascade.specs):
            if spec.name in self.cascade.networks:
                self.cascade.networks[spec.name].fit(z)

    def _scale(self, index: int, name: str) -> ScaleTrainer:
        training = self.config.training
        module = nn.ModuleDict({"network": self.cascade.networks[name], "schedule": self.cascade.schedules[index]})
        own = module if self.shared is None else module["network"]
        ema = nn.ModuleDict({"network": _average_of(module["network"]),
                             "schedule": _average_of(module["schedule"]) if self.shared is None else self.shared.ema})
        order, noise, flips, dropout = (_seed(self.seed, index, purpose) for purpose in range(4))
        with torch.random.fork_rng(devices=self._cuda()):
            torch.manual_seed(dropout)
            dropout_state = self._dropout_state()
        return ScaleTrainer(index, name, module, ema, self._optimiser(own), BatchSampler(len(self.images), training.batch_size, order),
                            torch.Generator(self.device).manual_seed(noise), torch.Generator().manual_seed(flips), dropout_state)

    def _optimiser(self, module: nn.Module) -> torch.optim.Optimizer:
        training = self.config.training
        return torch.optim.AdamW(module.parameters(), lr=training.learning_rate, betas=(training.beta1, training.beta2),
                                 weight_decay=training.weight_decay)

    def _shared_schedule(self) -> SharedSchedule | None:
        """A learned schedule that all scales share has an optimiser of its own, which sees the sum of their gradients."""
        schedule = self.cascade.schedules[0]
        if not self.config.model.shared_schedule or not list(schedule.parameters()):
            return None
        return SharedSchedule(schedule, _average_of(schedule), self._optimiser(schedule))

    def _cuda(self) -> list[int]:
        return [self.device.index or 0] if self.device.type == "cuda" else []

    def _dropout_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def _set_dropout_state(self, state: Tensor) -> None:
        torch.cuda.set_rng_state(state, self.device) if self.device.type == "cuda" else torch.set_rng_state(state)

    def _open(self, resume: bool) -> None:
        newest = newest_checkpoint(self.run_dir)
        if newest is not None and resume:
            self._load(newest)
        elif newest is not None or (self.run_dir / "config.json").exists():
            if not resume:
                raise FileExistsError(f"{self.run_dir} holds a run already: resume it, or give another folder")
            self._check_identity(records.read_json(self.run_dir / "config.json"), self.run_dir)
        else:
            records.write_json(self.run_dir / "config.json", self.header | {"provenance": []})

    # ---- the loop

    def run(self, *, minutes: float | None = None, steps: int | None = None, progress: bool = True, log_every: int = 10,
            checkpoint_minutes: float = 2.0, on_log: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Train until the run has had `minutes` of training or `steps` steps in all, earlier sessions counted in.

        Ends with a checkpoint, also when interrupted by the keyboard, unless that fell between the updates of two scales: then the last
        checkpoint counts. A step trains every chosen scale once.

        Raises:
            BlockingIOError: where another process trains in this folder.
            RuntimeError: where this trainer was interrupted between the updates of two scales.
            TrainingDiverged: where loss or gradient is not finite; the state before that step is saved.
        """
        if (minutes is None) == (steps is None):
            raise ValueError("give a budget: either minutes or steps")
        if not (minutes or steps) > 0:
            raise ValueError(f"the budget must be positive, got minutes={minutes}, steps={steps}")
        if self.torn:
            raise RuntimeError(f"this trainer was interrupted in the middle of an update: make a new one with resume=True on {self.run_dir}")
        self.budget = {"minutes": minutes} if steps is None else {"steps": steps}
        with records.lock(self.run_dir):
            self._begin_session()
            self._loop(progress, log_every, checkpoint_minutes, on_log)

    def _begin_session(self) -> None:
        for left in (self.run_dir / "checkpoints").glob(".step-*"):  # a kill while a checkpoint was being written
            shutil.rmtree(left, ignore_errors=True)
        self._trim_log()
        header = records.read_json(self.run_dir / "config.json")
        header["provenance"].append(records.provenance(self.device) | {"from_step": self.step})
        records.write_json(self.run_dir / "config.json", header)

    def _loop(self, progress: bool, log_every: int, checkpoint_minutes: float, on_log: Callable[[dict[str, Any]], None] | None) -> None:
        start, before, saved = time.monotonic(), self.seconds, time.monotonic()
        minutes, steps = self.budget.get("minutes"), self.budget.get("steps")
        total = max(1, round(60 * minutes)) if steps is None else steps
        bar = tqdm(total=total, initial=min(round(self.seconds) if steps is None else self.step, total), disable=not progress,
                   desc=f"training {self.cascade.map.name}", unit="s" if steps is None else "step")
        totals: dict[str, list[float]] = {}
        self.cascade.train()
        try:
            while self._progress() < 1.0:
                losses = self._gradients()
                self.torn = True  # an interrupt from here on would leave some scales a step ahead of the others
                for name, figure in self._apply(losses).items():
                    totals.setdefault(name, []).append(figure)
                self.torn = False
                self.seconds = before + time.monotonic() - start
                done = min(round(self.seconds), total) if steps is None else self.step
                bar.update(done - bar.n)
                if self.step % log_every == 0 or self._progress() >= 1.0:
                    record = self._record(totals)
                    totals = {}
                    bar.set_postfix_str(f"loss {record['bpd']:.3f} bpd")
                    if on_log is not None:
                        on_log(record)
                if time.monotonic() - saved > 60 * checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
        finally:
            bar.close()
            self.seconds = before + time.monotonic() - start
            if not self.torn:
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
        if self.shared is not None:
            self.shared.optimiser.zero_grad(set_to_none=True)
        try:
            with torch.random.fork_rng(devices=self._cuda()):
                losses = [self._gradient(scale) for scale in self.scales]
                if self.shared is not None:
                    self._clip(self.shared.schedule.parameters(), "the shared schedule")
                return losses
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
        value = float(loss.detach())
        self._clip(scale.parameters(), f"scale {scale.name}", value)
        return value

    def _clip(self, parameters: Iterable[nn.Parameter], where: str, loss: float = 0.0) -> None:
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.training.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(f"step {self.step}, {where}: loss {loss}, gradient norm {norm}. The state before this step is kept in "
                                   f"{self.run_dir}; train anew with a lower learning_rate or clip")

    @torch.no_grad()
    def _apply(self, losses: Sequence[float]) -> dict[str, float]:
        """One optimiser and EMA step of every scale; the losses as shares of the image's bits per dimension."""
        self.rate, decay, figures = self._rate(), min(self.config.training.ema, (self.step + 1) / (self.step + 10)), {}
        averages = [(scale.optimiser, scale.ema, scale.module) for scale in self.scales]
        if self.shared is not None:
            averages = [(optimiser, ema["network"], module["network"]) for optimiser, ema, module in averages]
            averages.append((self.shared.optimiser, self.shared.ema, self.shared.schedule))
        for optimiser, ema, module in averages:
            for group in optimiser.param_groups:
                group["lr"] = self.rate
            optimiser.step()
            torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - decay)
        for scale, loss in zip(self.scales, losses):
            figures[scale.name] = bits_per_dim(loss * self.cascade.specs[scale.index].dims, self.cascade.dims)
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
            (folder / "config.json").write_text(json.dumps(self.header | {"step": self.step, "seconds": self.seconds}, indent=2))
            for scale in self.scales:
                for kind, module in (("raw", scale.module), ("ema", scale.ema)):
                    tensors = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
                    safetensors.torch.save_file(tensors, folder / f"{kind}.{scale.name}.safetensors")
            state: dict[str, Any] = {s.name: {"optimiser": s.optimiser.state_dict(), "streams": s.streams()} for s in self.scales}
            if self.shared is not None:
                state["shared schedule"] = self.shared.optimiser.state_dict()
            torch.save(state, folder / "state.pt")
        for old in checkpoints(self.run_dir)[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def _check_identity(self, found: Mapping[str, Any], where: Path) -> None:
        def identity(header: Mapping[str, Any]) -> dict[str, Any]:
            data = header.get("data") or {}
            return {k: header.get(k) for k in self.header} | {"data": {k: data.get(k) for k in _IDENTIFYING}}

        lines = differences(identity(json.loads(json.dumps(self.header))), identity(found))
        if lines:
            raise CheckpointMismatch(f"{where} belongs to another run; give its settings or another folder:\n  " + "\n  ".join(lines))

    def _load(self, path: Path) -> None:
        header = records.read_json(path / "config.json")
        self._check_identity(header, path)
        try:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path / 'state.pt'} cannot be read ({str(error).splitlines()[0] if str(error) else 'empty'}): it was cut short. "
                             f"Remove {path} to continue from the checkpoint before it") from error
        for scale in self.scales:
            load_weights(scale.module, path / f"raw.{scale.name}.safetensors")
            load_weights(scale.ema, path / f"ema.{scale.name}.safetensors")
            scale.optimiser.load_state_dict(state[scale.name]["optimiser"])
            scale.load_streams(state[scale.name]["streams"])
        if self.shared is not None:
            self.shared.optimiser.load_state_dict(state["shared schedule"])
        self.step, self.seconds = int(header["step"]), float(header["seconds"])
