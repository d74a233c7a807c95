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
import importlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Barrier
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pcdm_lib import outputs, records
from pcdm_lib.advice import Interrupted
from pcdm_lib.diffusion.schedule import FittedSchedule
from pcdm_lib.models.cascade import bits_per_dim
from pcdm_lib.models.checkpoints import FORMAT, newest_checkpoint, step_of
from pcdm_lib.models.config import Config
from pcdm_lib.models.presets import build
from pcdm_lib.training import distributed
from pcdm_lib.training.batches import random_flip
from pcdm_lib.training.distributed import Group
from pcdm_lib.training.log import Log
from pcdm_lib.training.optimisers import Optimiser
from pcdm_lib.training.preparation import Preparation
from pcdm_lib.training.state import ScaleTrainer, TrainingDiverged, network_of, seed_of


class Trainer(Preparation, Log):
    """Trains the chosen scales of a configuration on uint8 images.

    Source: Appendix B of the paper, for the order of things: one network a scale, each trained on
    its own term of Eq. 17.

    Args:
        config: model and training.
        images: uint8 (N, C, H, W).
        run_dir: the run's folder.
        data: JSON-able facts about the images, kept with the run; a resumed run must agree on the
            training images' checksum.
        seed: of the initial weights and of all random streams.
        scales: names of the scales to train, all by default.
        device: where.
        resume: continue from the newest checkpoint of run_dir where there is one. Without it a
            folder that holds a run is refused, so that nothing is overwritten. What a start left
            that finished no step is no run: it is cleared away, and `note` says so.
        groups: under torchrun, whether all processes train every scale ("together") or each trains
            one ("scales"; distributed.divide).
        shard: under torchrun, divide parameters, their averages and the optimiser's state among the
            processes of a scale (FSDP2).
        side_by_side: train the scales in threads at once, for one process on a CPU without dropout
            and with no schedule shared. Whether that is faster than in turn with all threads
            depends on the processor (`python -m benchmarks --parts variants` measures it).

    Raises:
        FileExistsError: where run_dir holds a run and `resume` is False, or a file that a run would
            write and no run wrote.
        CheckpointMismatch: where the run to resume has other settings or images.
        ValueError: for images that do not fit the model, or options that do not go together.

    Example:
        >>> import tempfile
        >>> config = pcdm.preset("tiny", image_shape=(3, 8, 8)).override({"batch_size": 2})
        >>> images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
        >>> folder = tempfile.mkdtemp()
        >>> trainer = pcdm.Trainer(config, images, folder)
        >>> trainer.run(steps=1, progress=False)
        >>> trainer.step, trainer.cascade.names
        (1, ('base', 'details1'))
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
        self.cascade.check_training(config.training, shard)
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
        newest, self.note = distributed.from_first(lambda: self._open(resume))
        self.scales = [
            self._scale(i, s.name, mine[s.name], newest)
            for i, s in enumerate(self.cascade.specs)
            if s.name in mine
        ]
        if newest is not None:
            self._load(newest)

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

        Args:
            minutes: of training; give this or `steps`.
            steps: updates of every scale.
            progress: show a bar.
            log_every: steps between two lines of the log.
            checkpoint_minutes: between two checkpoints.
            on_log: called with every line of the log, in process 0.

        Raises:
            Interrupted: after a Ctrl-C; it says at which step the run was saved.
            ValueError: for both budgets or none, or one that is not positive and finite.
            BlockingIOError: where another process trains in this folder.
            RuntimeError: where this trainer was interrupted between the updates of two scales.
            TrainingDiverged: where loss or gradient is not finite; the state before that step is
                saved.
        """
        if (minutes is None) == (steps is None):
            raise ValueError("give a budget: either minutes or steps")
        given = steps if minutes is None else minutes
        if given is None or not 0 < given < math.inf:
            raise ValueError(
                f"the budget must be positive and finite, got minutes={minutes}, steps={steps}"
            )
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
                stack.enter_context(outputs.lock(self.run_dir))
                self._begin_session(described)

            distributed.from_first(begin)
            if self.side_by_side:
                self._pool = stack.enter_context(self._threads())
            try:
                self._loop(
                    progress and distributed.rank() == 0, log_every, checkpoint_minutes, on_log
                )
            except KeyboardInterrupt:
                raise Interrupted(self._how_to_go_on()) from None

    def _how_to_go_on(self) -> str:
        """What an interrupt left, in one line."""
        newest = newest_checkpoint(self.run_dir)
        if newest is None:
            return "stopped before the first step, nothing was saved: run again to begin anew"
        return (
            f"stopped, saved at step {step_of(newest)} in {self.run_dir}: run again to continue "
            f"(pcdm train with --resume, a Trainer with resume=True)"
        )

    def _begin_session(self, described: list[dict[str, Any]]) -> None:
        # a kill while a checkpoint was being written
        outputs.sweep(self.run_dir / "checkpoints", r"step-\d+")
        self._trim_log()
        header = records.read_json(self.run_dir / "config.json")
        # another process may have begun anew here since this one was set up
        self._check_identity(header | {"shown": self.header.get("shown")}, self.run_dir)
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
            if not self.torn and self.step:  # before the first step there is nothing to keep
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
        schedule, network = cast(FittedSchedule, scale.module.schedule), network_of(scale.module)
        choice = torch.Generator().manual_seed(seed_of(self.seed, scale.index, 4, self.step))
        noise = torch.Generator(self.device).manual_seed(
            seed_of(self.seed, scale.index, 5, self.step)
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
                else (scale.optimiser, network_of(scale.ema), network_of(scale.module), decay)
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
