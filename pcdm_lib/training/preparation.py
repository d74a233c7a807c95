"""What happens before the first step: groups of processes, networks fitted to the images, and for
each scale its optimiser, average and random streams."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from pcdm_lib.diffusion.weighting import EdmLoss
from pcdm_lib.models.checkpoints import CheckpointMismatch, load_weights
from pcdm_lib.models.config import config_differences
from pcdm_lib.models.scale import Scale
from pcdm_lib.models.unet import Attention, ResidualBlock
from pcdm_lib.training import distributed
from pcdm_lib.training.batches import BatchSampler
from pcdm_lib.training.distributed import Group
from pcdm_lib.training.optimisers import Optimiser, make_optimiser
from pcdm_lib.training.saving import Saving
from pcdm_lib.training.state import ScaleTrainer, SharedSchedule, average_of, network_of, seed_of


class Preparation(Saving):
    """The part of `Trainer` that sets a run up."""

    @torch.no_grad()
    def _costs(self) -> dict[str, float]:
        """What a step of each scale costs: the operations of one image's forward pass."""
        costs, modes = {}, {network: network.training for network in self.cascade.networks.values()}
        pairs = self.cascade.decompose(self.images[:1])
        for (z, coarse), scale in zip(pairs, self.cascade.scales):
            if scale.network is not None:
                scale.network.eval()
                with FlopCounterMode(display=False) as counter:
                    scale.once(z, coarse)
                costs[scale.name] = float(counter.get_total_flops())
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
            scale.fit(z, coarse)
            if self.config.training.weighting == "edm":
                # a constant scale is as well known as its integers allow
                std = float(scale.spec.to_float(z, torch.float64).std(correction=0))
                scale.weighting = EdmLoss(max(std, 0.25 * scale.spec.gain))

    def _scale(self, index: int, name: str, group: Group, checkpoint: Path | None) -> ScaleTrainer:
        """A scale ready to train, with the weights of a checkpoint where there is one."""
        training = self.config.training
        module = self.cascade.scales[index]
        network = network_of(module)
        own: nn.Module = module if self.shared is None else network
        average = average_of(module.schedule) if self.shared is None else self.shared.ema
        ema = type(module)(module.spec, average_of(network), average)
        if checkpoint is not None:
            load_weights(module, checkpoint / f"raw.{name}.safetensors")
            load_weights(ema, checkpoint / f"ema.{name}.safetensors")
        order, noise, flips = (seed_of(self.seed, index, purpose) for purpose in range(3))
        sampler, generator = (
            BatchSampler(len(self.images), training.batch_size, order),
            torch.Generator(self.device).manual_seed(noise),
        )
        replicated: list[nn.Parameter] = []
        if self.shard:
            for whole in (network, network_of(ema)):
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
        return SharedSchedule(schedule, average_of(schedule), self._optimiser(schedule))
