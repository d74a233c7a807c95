"""The training loop: optimiser, warm-up, EMA, clipping, a NaN guard, checkpoints, resume, a log.

Each scale has its own optimiser and its own random stream, so scales trained apart get the same
weights as scales trained together. A run lives in a folder:

    config.json                          the configuration, the data, the seed
    log.jsonl                            one line every few steps
    checkpoints/step-00001234/           config.json, {raw,ema}.<scale>.safetensors, state.pt

Under torchrun (distributed.py) the batch is that of all processes together. Each process draws
order, flips, times and noise for the whole of it and computes its own part, so the number of
processes changes the weights by float error alone (dropout's masks apart, which every process draws
for its part), and a run may be resumed with another number, other groups, sharded or not. Process 0
keeps the lock, the log, the clock and the checkpoints; the others follow it step by step.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import math
import os
import pickle
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from pcdm_lib import records
from pcdm_lib.diffusion.schedule import FittedSchedule, Schedule
from pcdm_lib.diffusion.weighting import EdmLoss
from pcdm_lib.models.cascade import bits_per_dim
from pcdm_lib.models.checkpoints import (
    FORMAT,
    CheckpointMismatch,
    list_checkpoints,
    load_weights,
    newest_checkpoint,
    read_log,
)
from pcdm_lib.models.config import Config, config_differences, modern_names
from pcdm_lib.models.preconditioning import PreconditionedDenoiser
from pcdm_lib.models.presets import build
from pcdm_lib.models.scale import Scale
from pcdm_lib.models.unet import Attention, ResidualBlock
from pcdm_lib.training import distributed
from pcdm_lib.training.batches import BatchSampler, random_flip
from pcdm_lib.training.distributed import Group
from pcdm_lib.training.optimisers import Optimiser, make_optimiser

# what a resumed run must have learned from; the rest of `data` is a record
_IDENTIFYING = ("train_sha256", "train_count")


class TrainingDiverged(FloatingPointError):
    """Loss or gradient was not finite. On a CPU the weights before that step were saved; on a GPU,
    where this is seen some steps later, the last checkpoint counts, which holds finite weights."""


@dataclass
class ScaleTrainer:
    """What one scale needs to train: a module that holds its network and schedule, optimiser, EMA,
    random streams."""

    index: int
    name: str
    module: Scale
    ema: Scale
    optimiser: Optimiser
    trained: list[nn.Parameter]  # what the optimiser changes
    sampler: BatchSampler
    generator: torch.Generator  # noise and times, on the device
    flips: torch.Generator
    dropout_state: Tensor
    group: Group
    loss: nn.Module  # the module, wrapped where the scale is trained in several processes
    # whose gradient nobody else averages over the group: a schedule beside a sharded network
    replicated: list[nn.Parameter]

    def streams(self) -> dict[str, Any]:
        """Where the random streams stand; cheap enough for every step."""
        return {
            "sampler": self.sampler.state_dict(),
            "generator": self.generator.get_state(),
            "flips": self.flips.get_state(),
            "dropout": self.dropout_state,
        }

    def load_streams(self, state: Mapping[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self.generator.set_state(state["generator"])
        self.flips.set_state(state["flips"])
        self.dropout_state = state["dropout"]


@dataclass
class SharedSchedule:
    """A learned schedule that belongs to all scales: its average over training and its own
    optimiser."""

    schedule: Schedule
    ema: Schedule
    optimiser: Optimiser


_Module = TypeVar("_Module", bound=nn.Module)


def _average_of(module: _Module) -> _Module:
    return copy.deepcopy(module).requires_grad_(False).eval()


def _network(scale: Scale) -> PreconditionedDenoiser:
    """The network of a scale that is trained here; `build` made it."""
    return cast(PreconditionedDenoiser, scale.network)


def _seed(*parts: int) -> int:
    """A seed for each of several streams, none of which starts like another."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class Trainer:
    """Trains the chosen scales of a configuration on uint8 images.

    Args:
        config: model and training.
        images: uint8 (N, C, H, W).
        run_dir: the run's folder.
        data: JSON-able facts about the images, kept with the run; a resumed run must agree on the
            training images' checksum.
        scales: names of the scales to train, all by default.
        device: where.
        resume: continue from the newest checkpoint of run_dir where there is one. Without it a
            folder that holds a run is refused, so that nothing is overwritten.
        groups: under torchrun, whether all processes train every scale ("together") or each trains
            one ("scales"; distributed.divide).
        shard: under torchrun, divide parameters, their averages and the optimiser's state among the
            processes of a scale (FSDP2).
        side_by_side: train the scales in threads at once, for one process on a CPU without dropout
            and with no schedule shared. Whether that is faster than in turn with all threads
            depends on the processor (`python -m benchmarks --parts variants` measures it).
    """

    def __init__(
        self,
        config: Config,
        images: Tensor,
        run_dir: Path | str,
        *,
        data: Mapping[str, Any] | None = None,
        seed: int = 0,
        scales: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        resume: bool = False,
        groups: str = "together",
        shard: bool = False,
        side_by_side: bool = False,
    ):
        self.config, self.images, self.run_dir, self.seed, self.shard = (
            config,
            images,
            Path(run_dir),
            seed,
            shard,
        )
        self.device = torch.device(device)
        # whether each step's loss is looked at: on a GPU that would leave it idle
        self.waits = self.device.type != "cuda"
        if shard and not torch.distributed.is_initialized():
            raise ValueError("sharding divides a network among processes: start them by torchrun")
        if shard and config.training.optimiser != "adamw":
            raise ValueError(
                f"sharding takes AdamW, whose state divides; {config.training.optimiser} needs "
                f"whole matrices: set optimiser=adamw"
            )
        # takes torch seconds to import
        self._sharding: Any = (
            importlib.import_module("pcdm_lib.training.sharding") if shard else None
        )
        self.cascade = build(config.model, seed, scales)
        self.cascade.check_images(images)
        self.costs = self._costs()
        self.side_by_side = self._check_side_by_side(side_by_side)
        self._pool: ThreadPoolExecutor | None = None
        self.header: dict[str, Any] = {
            "format": FORMAT,
            "config": config.to_dict(),
            "data": dict(data or {}),
            "seed": seed,
            "scales": list(self.cascade.networks),
        }
        self.step, self.seconds, self.rate, self.torn = 0, 0.0, 0.0, False
        self.budget: dict[str, Any] = {}
        # what the processes agreed on in this step
        self._clock, self._stop, self._save_due = 0.0, False, False
        mine = self._groups(groups)
        self.cascade.to(self.device)
        self._fit(images)
        self.shared = self._shared_schedule()
        self._check_alike()
        newest = distributed.from_first(lambda: self._open(resume))
        self.scales = [
            self._scale(i, s.name, mine[s.name], newest)
            for i, s in enumerate(self.cascade.specs)
            if s.name in mine
        ]
        if newest is not None:
            self._load(newest)

    # ---- set-up

    @torch.no_grad()
    def _costs(self) -> dict[str, float]:
        """What a step of each scale costs: the operations of one image's forward pass."""
        costs, modes = {}, {network: network.training for network in self.cascade.networks.values()}
        for (z, coarse), spec in zip(self.cascade.decompose(self.images[:1]), self.cascade.specs):
            if spec.name in self.cascade.networks:
                with FlopCounterMode(display=False) as counter:
                    self.cascade.networks[spec.name].eval()(z.float(), torch.zeros(1), coarse)
                costs[spec.name] = float(counter.get_total_flops())
        for network, training in modes.items():
            network.train(training)
        return costs

    def _groups(self, how: str) -> dict[str, Group]:
        """The groups of the scales that this process trains; forgets the other scales' networks."""
        costs = self.costs
        ranks = distributed.divide(list(costs.values()), distributed.size(), how)
        made = dict(zip(costs, distributed.make_groups(ranks, self.config.training.batch_size)))
        for name, group in made.items():
            if distributed.rank() not in group.ranks:
                self.cascade.forget(name)
        return {name: group for name, group in made.items() if name in self.cascade.networks}

    def _check_side_by_side(self, wanted: bool) -> bool:
        shared = self.config.model.shared_schedule and any(
            True for _ in self.cascade.schedules.parameters()
        )
        applies = (
            len(self.costs) > 1
            and self.device.type == "cpu"
            and not self.config.model.dropout
            and not shared
            and not torch.distributed.is_initialized()
        )
        if wanted and not applies:
            raise ValueError(
                "side_by_side takes two scales or more in one process on a CPU, without dropout "
                "and without a learned schedule "
                "that they share: leave it out"
            )
        return wanted

    def _check_alike(self) -> None:
        """Every process must have the settings and images of process 0."""
        own = json.loads(json.dumps(self._identity(self.header)))
        lines = config_differences(distributed.from_first(lambda: own), own)
        if distributed.total([float(bool(lines))])[0]:
            raise CheckpointMismatch(
                f"the processes of this job differ; process {distributed.rank()} and process 0:\n  "
                + "\n  ".join(lines or ["(no difference here: see the other processes' messages)"])
            )

    @torch.no_grad()
    def _fit(self, images: Tensor) -> None:
        spread = images[:: max(1, len(images) // 4096)]
        for (z, coarse), scale in zip(self.cascade.decompose(spread), self.cascade.scales):
            if scale.network is None:
                continue
            _network(scale).fit(z, coarse)
            if self.config.training.weighting == "edm":
                # a constant scale is as well known as its integers allow
                std = float(scale.spec.to_float(z, torch.float64).std(correction=0))
                scale.weighting = EdmLoss(max(std, 0.25 * scale.spec.gain))

    def _scale(self, index: int, name: str, group: Group, checkpoint: Path | None) -> ScaleTrainer:
        """A scale ready to train, with the weights of a checkpoint where there is one."""
        training = self.config.training
        module = self.cascade.scales[index]
        network = _network(module)
        own: nn.Module = module if self.shared is None else network
        average = _average_of(module.schedule) if self.shared is None else self.shared.ema
        ema = Scale(module.spec, _average_of(network), average)
        if checkpoint is not None:
            load_weights(module, checkpoint / f"raw.{name}.safetensors")
            load_weights(ema, checkpoint / f"ema.{name}.safetensors")
        order, noise, flips = (_seed(self.seed, index, purpose) for purpose in range(3))
        sampler, generator = (
            BatchSampler(len(self.images), training.batch_size, order),
            torch.Generator(self.device).manual_seed(noise),
        )
        replicated: list[nn.Parameter] = []
        if self.shard:
            for whole in (network, _network(ema)):
                blocks = [m for m in whole.modules() if isinstance(m, (ResidualBlock, Attention))]
                self._sharding.shard(whole, blocks, group, self.device)
            replicated = list(module.schedule.parameters()) if own is module else []
        if training.precision == "bf16":
            network.autocast = torch.bfloat16
        if training.compile:
            network.net.compile()  # in place: names and weights stay as they are
        loss: nn.Module = module
        if group.size > 1 and not self.shard:
            loss = self._in_parallel(module, group)
        if group.size > 1:
            module.schedule.batch_mean = group.mean
        optimiser = self._optimiser(own)
        if self.shard:
            optimiser = self._sharding.own_group(optimiser)
        return ScaleTrainer(
            index,
            name,
            module,
            ema,
            optimiser,
            list(own.parameters()),
            sampler,
            generator,
            torch.Generator().manual_seed(flips),
            self._fresh_dropout(index, group.place),
            group,
            loss,
            replicated,
        )

    def _in_parallel(self, scale: Scale, group: Group) -> nn.Module:
        """A scale whose gradients are averaged over its group.

        Buffers stay as they are: every process fits them to the same images. A schedule that all
        scales share is left out: its gradient is summed over the scales first (`_shared_norm`).
        """
        left_out = [name for name, _ in scale.named_buffers()]
        if self.shared is not None:
            left_out += [f"schedule.{name}" for name, _ in scale.schedule.named_parameters()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(scale, left_out)
        return DistributedDataParallel(scale, process_group=group.handle)

    def _fresh_dropout(self, index: int, place: int) -> Tensor:
        """Where the dropout stream of a scale starts: another place for every process of its
        group."""
        with torch.random.fork_rng(devices=self._cuda()):
            torch.manual_seed(_seed(self.seed, index, 3, *([place] if place else [])))
            return self._dropout_state()

    def _optimiser(self, module: nn.Module) -> Optimiser:
        training = self.config.training
        return make_optimiser(
            module,
            training.optimiser,
            training.learning_rate,
            training.muon_rate,
            (training.beta1, training.beta2),
            training.weight_decay,
            fused=not self.shard,
        )

    def _shared_schedule(self) -> SharedSchedule | None:
        """A learned schedule that all scales share has an optimiser of its own, which sees the sum
        of their gradients."""
        schedule = self.cascade.scales[0].schedule
        if not self.config.model.shared_schedule or not list(schedule.parameters()):
            return None
        return SharedSchedule(schedule, _average_of(schedule), self._optimiser(schedule))

    def _cuda(self) -> list[int]:
        return [self.device.index or 0] if self.device.type == "cuda" else []

    def _dropout_state(self) -> Tensor:
        return (
            torch.cuda.get_rng_state(self.device)
            if self.device.type == "cuda"
            else torch.get_rng_state()
        )

    def _set_dropout_state(self, state: Tensor) -> None:
        torch.cuda.set_rng_state(
            state, self.device
        ) if self.device.type == "cuda" else torch.set_rng_state(state)

    def _open(self, resume: bool) -> Path | None:
        """The checkpoint to continue from, if any; a new run's folder gets its config.json."""
        newest = newest_checkpoint(self.run_dir)
        if newest is not None and resume:
            self._check_identity(records.read_json(newest / "config.json"), newest)
            return newest
        if newest is not None or (self.run_dir / "config.json").exists():
            if not resume:
                raise FileExistsError(
                    f"{self.run_dir} holds a run already: resume it, or give another folder"
                )
            self._check_identity(records.read_json(self.run_dir / "config.json"), self.run_dir)
        else:
            records.write_json(self.run_dir / "config.json", self.header | {"provenance": []})
        return None

    # ---- the loop

    def run(
        self,
        *,
        minutes: float | None = None,
        steps: int | None = None,
        progress: bool = True,
        log_every: int = 10,
        checkpoint_minutes: float = 2.0,
        on_log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Train until the run has had `minutes` of training or `steps` steps in all, earlier
        sessions counted in.

        Ends with a checkpoint, also when interrupted by the keyboard, unless that fell between the
        updates of two scales: then the last checkpoint counts. A step trains every chosen scale
            once.

        Raises:
            BlockingIOError: where another process trains in this folder.
            RuntimeError: where this trainer was interrupted between the updates of two scales.
            TrainingDiverged: where loss or gradient is not finite; the state before that step is
                saved.
        """
        if (minutes is None) == (steps is None):
            raise ValueError("give a budget: either minutes or steps")
        given = steps if minutes is None else minutes
        if given is None or not given > 0:
            raise ValueError(f"the budget must be positive, got minutes={minutes}, steps={steps}")
        if self.torn:
            raise RuntimeError(
                f"this trainer was interrupted in the middle of an update: make a new one with "
                f"resume=True on {self.run_dir}"
            )
        self.budget = {"minutes": minutes} if steps is None else {"steps": steps}
        with contextlib.ExitStack() as stack:
            described = distributed.everywhere(
                {
                    "rank": distributed.rank(),
                    "host": platform.node(),
                    "pid": os.getpid(),
                    "scales": [scale.name for scale in self.scales],
                }
            )

            def begin() -> None:
                stack.enter_context(records.lock(self.run_dir))
                self._begin_session(described)

            distributed.from_first(begin)
            if self.side_by_side:
                self._pool = stack.enter_context(self._threads())
            self._loop(progress and distributed.rank() == 0, log_every, checkpoint_minutes, on_log)

    def _begin_session(self, described: list[dict[str, Any]]) -> None:
        # a kill while a checkpoint was being written
        for left in (self.run_dir / "checkpoints").glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)
        self._trim_log()
        header = records.read_json(self.run_dir / "config.json")
        header["provenance"].append(
            records.provenance(self.device)
            | {
                "from_step": self.step,
                "budget": self.budget,
                "processes": described,
                "shard": self.shard,
                "side_by_side": self.side_by_side,
            }
        )
        records.write_json(self.run_dir / "config.json", header)

    @contextlib.contextmanager
    def _threads(self) -> Iterator[ThreadPoolExecutor]:
        """A thread a scale, each with its share of torch's threads; that setting belongs to the
        thread that makes it."""
        threads, count = torch.get_num_threads(), len(self.scales)
        started = Barrier(count)

        def begin() -> None:
            torch.set_num_threads(max(1, threads // count))
            started.wait()

        with ThreadPoolExecutor(count, initializer=begin) as pool:
            try:
                wait([pool.submit(int) for _ in range(count)])
                torch.set_num_threads(threads)  # what threads made later start from was changed too
                yield pool
            finally:
                self._pool = None

    def _loop(
        self,
        progress: bool,
        log_every: int,
        checkpoint_minutes: float,
        on_log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.seconds = distributed.from_first(lambda: self.seconds)
        start, before, saved = time.monotonic(), self.seconds, time.monotonic()
        budget: dict[str, Any] = {"minutes": None, "steps": None} | self.budget
        minutes, steps = budget["minutes"], budget["steps"]
        total: int = max(1, round(60 * minutes)) if steps is None else steps
        bar = tqdm(
            total=total,
            initial=min(round(self.seconds) if steps is None else self.step, total),
            disable=not progress,
            desc=f"training {self.cascade.map.name}",
            unit="s" if steps is None else "step",
        )
        totals: dict[str, list[float | Tensor]] = {}
        self.cascade.train()
        try:
            while self._progress() < 1.0:
                self._clock, self._save_due = (
                    before + time.monotonic() - start,
                    time.monotonic() - saved > 60 * checkpoint_minutes,
                )
                self._fit_schedules()
                losses = self._gradients()
                # an interrupt from here on would leave some scales a step ahead of the others
                self.torn = True
                for name, figure in self._apply(losses).items():
                    totals.setdefault(name, []).append(figure)
                self.torn = False
                self.seconds = (
                    self._clock if distributed.size() > 1 else before + time.monotonic() - start
                )
                done = min(round(self.seconds), total) if steps is None else self.step
                bar.update(done - bar.n)
                if self.step % log_every == 0 or self._progress() >= 1.0:
                    record = self._record(totals)
                    totals = {}
                    plain = self.config.training.weighting == "likelihood"
                    unit = "bpd" if plain else "(weighted)"
                    bar.set_postfix_str(f"loss {record['bpd']:.3f} {unit}")
                    if on_log is not None and distributed.rank() == 0:
                        on_log(record)
                if self._save_due:
                    self.save()
                    saved = time.monotonic()
                if self._stop:
                    raise KeyboardInterrupt
        except (KeyboardInterrupt, TrainingDiverged):
            raise  # with several processes: raised in all of them after the same step
        except BaseException:
            # the others may be elsewhere: the last checkpoint counts
            self.torn = self.torn or distributed.size() > 1
            raise
        finally:
            bar.close()
            if distributed.size() == 1:
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
        decay = (
            0.5 * (1 + math.cos(math.pi * min(self._progress(), 1.0)))
            if training.lr_decay == "cosine"
            else 1.0
        )
        return training.learning_rate * warm * decay

    def _fit_schedules(self) -> None:
        """Where schedules follow the loss: before steps 0, 16, 32, 64, 128 and so on, from draws
        that depend on seed and step alone."""
        if self.config.model.schedule == "fitted" and (
            self.step == 0 or (self.step >= 16 and self.step & (self.step - 1) == 0)
        ):
            self._each(self._fit_schedule, [(scale,) for scale in self.scales])

    @torch.no_grad()
    def _fit_schedule(self, scale: ScaleTrainer) -> None:
        schedule, network = cast(FittedSchedule, scale.module.schedule), _network(scale.module)
        choice = torch.Generator().manual_seed(_seed(self.seed, scale.index, 4, self.step))
        noise = torch.Generator(self.device).manual_seed(
            _seed(self.seed, scale.index, 5, self.step)
        )
        network.eval()
        profiles = []
        for _ in range(4):
            batch = self.images[
                torch.randint(len(self.images), (2 * schedule.bins,), generator=choice)
            ]
            z, coarse = self._coordinates(batch, scale.index)
            profiles.append(scale.module.noise_profile(z, coarse, noise, schedule.bins))
        network.train()
        profile = torch.stack(profiles).mean(dim=0)
        # if not, the gradient of this step says so, in all processes
        if bool(torch.isfinite(profile).all()):
            schedule.fit(profile)
            scale.ema.schedule.load_state_dict(schedule.state_dict())

    def _gradients(self) -> Sequence[float | Tensor]:
        """Loss and gradient of every scale. Changes no weight; where it fails, the random streams
        are put back too, so that the state is that of the step before. Here the processes agree on
        the clock, on a checkpoint, on stopping, and that nobody diverged."""
        before = [scale.streams() for scale in self.scales]
        if self.shared is not None:
            self.shared.optimiser.zero_grad(set_to_none=True)
        dropout = self.config.model.dropout
        try:
            with (
                torch.random.fork_rng(devices=self._cuda()) if dropout else contextlib.nullcontext()
            ):
                found = self._each(self._gradient, [(scale,) for scale in self.scales])
                losses, norms = [loss for loss, _ in found], [norm for _, norm in found]
                where = [f"scale {scale.name}" for scale in self.scales]
                if self.shared is not None:
                    norms.append(self._shared_norm())
                    where.append("the shared schedule")
                if not self.waits:  # a norm that is not finite shows as a loss when they are logged
                    fine = torch.isfinite(
                        torch.stack([n.to(self.device, torch.float32) for n in norms])
                    ).all()
                    self._agree("")
                    return [torch.where(fine, loss, math.nan) for loss in losses]
                values = [float(v) for v in losses]
                figures = zip(where, [*values, 0.0], [float(v) for v in norms])
                self._agree(
                    next(
                        (
                            f"{place}: loss {loss}, gradient norm {norm}"
                            for place, loss, norm in figures
                            if not (math.isfinite(loss) and math.isfinite(norm))
                        ),
                        "",
                    )
                )
                return values
        except BaseException:
            for scale, streams in zip(self.scales, before):
                scale.load_streams(streams)
            raise

    def _each(self, work: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`work` of each item, in threads where the scales are trained side by side; returns or
        raises when all have ended."""
        if self._pool is None:
            return [work(*item) for item in items]
        jobs = [self._pool.submit(work, *item) for item in items]
        try:
            return [job.result() for job in jobs]
        except BaseException:
            # a second interrupt while a thread is still at work leaves a state that nobody knows
            torn, self.torn = self.torn, True
            wait(jobs)
            self.torn = torn
            raise

    def _agree(self, trouble: str) -> None:
        """What process 0's clock says, whether it is time for a checkpoint, whether anyone wants to
        stop, whether anyone diverged."""
        first = distributed.rank() == 0
        self._clock, due, stop, diverged = distributed.total(
            [
                self._clock if first else 0.0,
                float(first and self._save_due),
                float(distributed.stopping()),
                float(bool(trouble)),
            ]
        )
        self._save_due, self._stop = due > 0, stop > 0
        if diverged:
            raise self._diverged(
                f"step {self.step}, {trouble or 'another process'}",
                "The state before this step is kept in",
            )

    def _diverged(self, what: str, kept: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what}. {kept} {self.run_dir}; train anew with a lower learning_rate or clip"
        )

    def _gradient(self, scale: ScaleTrainer) -> tuple[Tensor, Tensor]:
        """Loss of this process's part of a scale's batch, and norm of the gradient of the whole
        batch, which is clipped."""
        training, group = self.config.training, scale.group
        batch = self.images[scale.sampler.next()]
        if training.flips:
            batch = random_flip(batch, scale.flips)
        part = batch.chunk(group.size)[group.place]
        z, coarse = self._coordinates(part, scale.index)
        if self.config.model.dropout:
            self._set_dropout_state(scale.dropout_state)
        loss = scale.loss(z, coarse, scale.generator, (group.place, group.size))
        if self.config.model.dropout:
            scale.dropout_state = self._dropout_state()
        scale.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._average(scale.replicated, group, group.size)
        if self.shard:
            return loss.detach(), self._sharding.clip(scale.trained, training.clip, group)
        return loss.detach(), nn.utils.clip_grad_norm_(scale.trained, training.clip)

    def _coordinates(self, images: Tensor, index: int) -> tuple[Tensor, Tensor | None]:
        """The integers of one scale of a batch and those of the coarser scales, on the device."""
        z, coarse = self.cascade.decompose(images)[index]
        return self._to_device(z), None if coarse is None else self._to_device(coarse)

    def _to_device(self, tensor: Tensor) -> Tensor:
        """The images' checks are made on the CPU, and the copy is queued: nothing here waits for a
        GPU."""
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor.to(self.device)
        )

    @torch.no_grad()
    def _average(self, parameters: Sequence[nn.Parameter], group: Group, count: int) -> None:
        if group.size > 1 and parameters:
            gradients = [cast(Tensor, p.grad) for p in parameters]
            torch._foreach_div_(gradients, count)
            group.add(gradients)

    def _shared_norm(self) -> Tensor:
        """The shared schedule's gradient, summed over the scales and averaged over each scale's
        processes; its norm, clipped."""
        assert self.shared is not None
        parameters = list(self.shared.schedule.parameters())
        everyone = Group(tuple(range(distributed.size())))
        # all scales of one process have groups of the same size
        self._average(parameters, everyone, self.scales[0].group.size)
        return nn.utils.clip_grad_norm_(parameters, self.config.training.clip)

    def _apply(self, losses: Sequence[float | Tensor]) -> dict[str, float | Tensor]:
        """One optimiser and EMA step of every scale; the losses as shares of the image's bits per
        dimension."""
        self.rate, decay = (
            self._rate(),
            min(self.config.training.ema, (self.step + 1) / (self.step + 10)),
        )
        self._each(
            self._update,
            [
                (scale.optimiser, scale.ema, scale.module, decay)
                if self.shared is None
                else (scale.optimiser, _network(scale.ema), _network(scale.module), decay)
                for scale in self.scales
            ],
        )
        if self.shared is not None:
            self._update(self.shared.optimiser, self.shared.ema, self.shared.schedule, decay)
        self.step += 1
        return {
            scale.name: bits_per_dim(loss * self.cascade.specs[scale.index].dims, self.cascade.dims)
            for scale, loss in zip(self.scales, losses)
        }

    @torch.no_grad()
    def _update(
        self, optimiser: Optimiser, ema: nn.Module, module: nn.Module, decay: float
    ) -> None:
        for group in optimiser.param_groups:
            group["lr"] = self.rate / self.config.training.learning_rate * group["initial_lr"]
        optimiser.step()
        local = self._sharding.local if self.shard else list
        torch._foreach_lerp_(local(ema.parameters()), local(module.parameters()), 1 - decay)

    # ---- log

    def _record(self, totals: Mapping[str, list[float | Tensor]]) -> dict[str, Any]:
        names = self.header["scales"]
        groups = {scale.name: scale.group.size for scale in self.scales}
        own = [
            float(sum(totals[name]) / len(totals[name])) / groups[name] if name in groups else 0.0
            for name in names
        ]
        means = dict(zip(names, distributed.total(own)))
        # where steps are waited for they have said so themselves
        if not all(map(math.isfinite, means.values())):
            self.torn = True
            raise self._diverged(
                f"one of the last steps before {self.step}: loss or gradient is not finite, mean "
                f"losses {means}",
                "The last checkpoint is kept in",
            )
        record = {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "images": self.step * self.config.training.batch_size,
            "rate": self.rate,
            "bpd": sum(means.values()),
            "scales": means,
        }
        if self.config.training.weighting != "likelihood":
            # then `bpd` and `scales` are no bits
            record["weighting"] = self.config.training.weighting
        if distributed.rank() == 0:
            with open(self.run_dir / "log.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        return record

    def _trim_log(self) -> None:
        """Drop lines after the checkpoint, and one that a kill cut short: the resumed run writes
        them again."""
        path = self.run_dir / "log.jsonl"
        if path.exists():
            kept = [r for r in read_log(self.run_dir) if r["step"] <= self.step]
            records.write_bytes(path, "".join(json.dumps(r) + "\n" for r in kept).encode())

    # ---- checkpoints

    def save(self) -> Path:
        """Write a checkpoint of this step; it appears whole or not at all. The newest two are kept.
        All processes call this together.

        Raises:
            TrainingDiverged: where weights are not finite.
        """
        path = self.run_dir / "checkpoints" / f"step-{self.step:08d}"
        if distributed.from_first(path.exists):
            return path
        with self._checkpoint_folder(path) as folder:
            for scale in self.scales:
                self._write_scale(scale, folder)
            distributed.total([0.0])  # all scales are written
            if distributed.rank() == 0:
                (folder / "config.json").write_text(
                    json.dumps(self.header | {"step": self.step, "seconds": self.seconds}, indent=2)
                )
                parts = {name: folder / f"state.{name}.pt" for name in self.header["scales"]}
                state = {
                    name: torch.load(part, map_location="cpu", weights_only=True)
                    for name, part in parts.items()
                }
                if self.shared is not None:
                    state["shared schedule"] = self.shared.optimiser.state_dict()
                torch.save(state, folder / "state.pt")
                for part in parts.values():
                    part.unlink()
        if distributed.rank() == 0:
            for old in list_checkpoints(self.run_dir)[:-2]:
                shutil.rmtree(old, ignore_errors=True)
        return path

    @contextlib.contextmanager
    def _checkpoint_folder(self, path: Path) -> Iterator[Path]:
        """The folder that process 0 makes and names; the leaders of other groups write into it too,
        on the same or a shared disk."""
        with contextlib.ExitStack() as stack:
            folder = Path(
                distributed.from_first(lambda: str(stack.enter_context(records.new_folder(path))))
            )
            yield folder

    def _write_scale(self, scale: ScaleTrainer, folder: Path) -> None:
        """One scale's files, by its group's leader; the others of the group hand over their shards
        and dropout streams."""
        for kind, module in (("raw", scale.module), ("ema", scale.ema)):
            tensors = {
                k: self._sharding.whole(v) if self.shard else v.detach().cpu().contiguous()
                for k, v in module.state_dict().items()
            }
            broken = [k for k, v in tensors.items() if not bool(torch.isfinite(v).all())]
            if broken:
                self.torn = True
                raise self._diverged(
                    f"step {self.step}, scale {scale.name}: the weights are not finite, in "
                    f"{broken[0]}",
                    "The last checkpoint is kept in",
                )
            if scale.group.leads:
                safetensors.torch.save_file(tensors, folder / f"{kind}.{scale.name}.safetensors")
        optimiser = (
            self._sharding.optimiser_state(scale.optimiser)
            if self.shard
            else scale.optimiser.state_dict()
        )
        dropout = torch.stack(scale.group.everywhere(scale.dropout_state))
        if scale.group.leads:
            torch.save(
                {"optimiser": optimiser, "streams": scale.streams() | {"dropout": dropout}},
                folder / f"state.{scale.name}.pt",
            )

    @staticmethod
    def _identity(header: Mapping[str, Any]) -> dict[str, Any]:
        """What two sessions of a run must have in common."""
        data = header.get("data") or {}
        known = ("format", "config", "seed", "scales", "shown")
        found = {k: header.get(k) for k in known} | {"data": {k: data.get(k) for k in _IDENTIFYING}}
        if found["config"] is not None:
            found["config"] = modern_names(found["config"])
        return found

    def _check_identity(self, found: Mapping[str, Any], where: Path) -> None:
        lines = config_differences(
            self._identity(json.loads(json.dumps(self.header))), self._identity(found)
        )
        if lines:
            raise CheckpointMismatch(
                f"{where} belongs to another run; give its settings or another folder:\n  "
                + "\n  ".join(lines)
            )

    def _load(self, path: Path) -> None:
        """Optimisers, random streams and place of a checkpoint whose weights are loaded."""
        header = records.read_json(path / "config.json")
        try:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path / 'state.pt'} cannot be read "
                f"({str(error).splitlines()[0] if str(error) else 'empty'}): it was cut short. "
                f"Remove {path} to continue from the checkpoint before it"
            ) from error
        self.step, self.seconds = int(header["step"]), float(header["seconds"])
        for scale in self.scales:
            if self.shard:
                self._sharding.load_optimiser_state(scale.optimiser, state[scale.name]["optimiser"])
            else:
                scale.optimiser.load_state_dict(state[scale.name]["optimiser"])
            streams = state[scale.name]["streams"]
            # one row a process, or the vector of one
            dropout = streams["dropout"].reshape(-1, streams["dropout"].shape[-1])
            place = scale.group.place
            own = (
                dropout[place].clone()
                if place < len(dropout)
                else self._fresh_dropout(scale.index, place)
            )
            scale.load_streams(streams | {"dropout": own})
        if self.shared is not None:
            self.shared.optimiser.load_state_dict(state["shared schedule"])
