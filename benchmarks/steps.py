"""A training step in variants: the library's, assembled from its public parts, and a plain one to
compare with.

`LibraryStep` does what `Trainer` does in a step (tests compare the two losses), less the guard
against NaN, and lets one thing at a time be changed. `PlainStep` is what one would write first: a
VDM (arXiv 2107.00630) on float images with independent times.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Stages
from pcdm_lib.models import Cascade, Config, UNet, build
from pcdm_lib.training.batches import BatchSampler, random_flip
from pcdm_lib.training.optimisers import Muon, make_optimiser

ADAMW: dict[str, dict[str, bool]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


class Autocast(nn.Module):
    """A network under autocast that returns float32: decoder, preconditioning and loss stay in full
    precision."""

    def __init__(self, net: nn.Module, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            return self.net(x, level).float()


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """TF32 in products and convolutions on CUDA, everywhere or nowhere; nothing on a CPU."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def fitted(config: Config, images: Tensor, seed: int, device: torch.device) -> Cascade:
    """The cascade of a configuration with the statistics of these images, as the trainer starts
    it."""
    cascade = build(config.model, seed).to(device)
    with torch.no_grad():
        for (z, coarse), spec in zip(cascade.decompose(images[:512].to(device)), cascade.specs):
            cascade.networks[spec.name].fit(z, coarse)
    return cascade


class TorchMuon:
    """`torch.optim.Muon` in the place of the library's: on matrices that are views of the
    channels-last kernels."""

    def __init__(self, ours: Muon):
        (group,) = ours.param_groups
        self.kernels = group["params"]
        self.views = [nn.Parameter(k.detach().permute(0, 2, 3, 1).flatten(1)) for k in self.kernels]
        self.muon = torch.optim.Muon(
            self.views, lr=group["lr"], momentum=group["momentum"], weight_decay=0.0
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        for kernel in self.kernels:
            kernel.grad = None

    def step(self) -> None:
        for kernel, view in zip(self.kernels, self.views):
            view.grad = kernel.grad.permute(0, 2, 3, 1).flatten(1)
        self.muon.step()


def _lerp_loop(averages: Sequence[Tensor], values: Sequence[Tensor], weight: float) -> None:
    for average, value in zip(averages, values):
        average.lerp_(value, weight)


class LibraryStep:
    """One training step of every scale.

    Args:
        adamw: None for the configuration's optimiser, or AdamW for all weights in one of the ways
            of ADAMW.
        torch_muon: torch's Muon for ours.
        foreach_ema: one call for all weights, or a Python loop.
        wrap: what stands in for each scale's U-Net (compiled, under autocast); its weights are
            trained.
        threads: 1 for scales in turn, else a pool of so many threads with one scale each, and
            torch's threads divided among them.
        stages: where to write down what took how long; needs scales in turn.
    """

    def __init__(
        self,
        config: Config,
        images: Tensor,
        device: torch.device,
        *,
        seed: int = 0,
        adamw: str | None = None,
        torch_muon: bool = False,
        foreach_ema: bool = True,
        channels_last: bool = True,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        threads: int = 1,
        stages: Stages | None = None,
    ):
        if stages is not None and threads > 1:
            raise ValueError(
                "stages of a step can be told apart only where scales are trained in turn: "
                "threads=1"
            )
        self.config, self.images, self.device, self.stages = config, images, device, stages
        self.cascade = fitted(config, images, seed, device).train()
        self.foreach_ema, self.pool = foreach_ema, _pool(threads) if threads > 1 else None
        self.scales = []
        for index, spec in enumerate(self.cascade.specs):
            network = self.cascade.networks[spec.name]
            if not channels_last:  # the library's networks are
                network.to(memory_format=torch.contiguous_format)
            module = nn.ModuleList([network, self.cascade.schedules[index]])
            # before the wrapping: a compiled module cannot be copied
            average = copy.deepcopy(module).requires_grad_(False)
            if wrap is not None:
                network.net = wrap(network.net)
            if stages is not None:
                network.net.register_forward_pre_hook(
                    lambda *_: self._mark("bound without network")
                )
                network.net.register_forward_hook(lambda *_: self._mark("network forward"))
            training = config.training
            usual = {
                "betas": (training.beta1, training.beta2),
                "weight_decay": training.weight_decay,
            }
            optimiser = (
                make_optimiser(
                    module, training.optimiser, training.learning_rate, training.muon_rate, **usual
                )
                if adamw is None
                else torch.optim.AdamW(
                    module.parameters(), lr=training.learning_rate, **usual, **ADAMW[adamw]
                )
            )
            if torch_muon:
                optimiser.parts["muon"] = TorchMuon(optimiser.parts["muon"])
            self.scales.append(
                (
                    index,
                    list(module.parameters()),
                    list(average.parameters()),
                    optimiser,
                    BatchSampler(len(images), training.batch_size, seed),
                    torch.Generator(device).manual_seed(seed + index),
                    torch.Generator().manual_seed(seed + index),
                )
            )

    def _mark(self, name: str) -> None:
        if self.stages is not None:
            self.stages.mark(name)

    def _loss(self, scale: tuple) -> Tensor:
        index, _, _, _, sampler, noise, flips = scale
        batch = self.images[sampler.next()]
        if self.config.training.flips:
            batch = random_flip(batch, flips)
        batch = batch.to(self.device)
        self._mark("data")
        z, coarse = self.cascade.decompose(batch)[index]
        self._mark("transform")
        loss = self.cascade.scales[index](z, coarse, noise)
        self._mark("bound without network")
        return loss

    def _train(self, scale: tuple) -> Tensor:
        loss = self._loss(scale)
        _, parameters, average, optimiser, *_ = scale
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._mark("backward")
        nn.utils.clip_grad_norm_(parameters, self.config.training.clip)
        optimiser.step()
        self._mark("optimiser and clipping")
        with torch.no_grad():
            weight = 1 - self.config.training.ema
            (torch._foreach_lerp_ if self.foreach_ema else _lerp_loop)(average, parameters, weight)
        self._mark("EMA")
        return loss.detach()

    def __call__(self) -> list[Tensor]:
        """Losses of the scales, on the device."""
        if self.stages is not None:
            self.stages.start()
        return list((map if self.pool is None else self.pool.map)(self._train, self.scales))


def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that have torch's threads between them; the caller keeps all of its own."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        workers, initializer=torch.set_num_threads, initargs=(max(1, before // workers),)
    )
    together = threading.Barrier(workers)
    list(pool.map(lambda _: together.wait(), range(workers)))  # all of them are up
    torch.set_num_threads(before)  # which the workers have set for threads to come
    return pool


class PlainStep:
    """A straightforward PyTorch training step of VDM on the same network: float images, Fourier
    features of z_t, independent uniform times, eps predicted, squared error, AdamW parameter by
    parameter, EMA in a Python loop."""

    def __init__(
        self,
        config: Config,
        images: Tensor,
        device: torch.device,
        *,
        seed: int = 0,
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
    ):
        model, training = config.model, config.training
        channels = model.image_shape[0]
        torch_state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        self.net = (
            UNet(
                5 * channels, channels, model.channels, model.blocks, model.dropout, model.attention
            )
            .to(device)
            .train()
        )
        torch.random.set_rng_state(torch_state)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        self.images, self.batch_size, self.device = (
            images.float().to(device) / 127.5 - 1,
            training.batch_size,
            device,
        )
        self.adam = torch.optim.AdamW(
            self.net.parameters(),
            lr=training.learning_rate,
            betas=(training.beta1, training.beta2),
            weight_decay=training.weight_decay,
            foreach=False,
        )
        self.clip, self.decay, self.flips, self.gamma_min, self.gamma_max = (
            training.clip,
            training.ema,
            training.flips,
            gamma_min,
            gamma_max,
        )
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self) -> Tensor:
        random: dict[str, Any] = {"generator": self.generator, "device": self.device}
        x = self.images[torch.randint(len(self.images), (self.batch_size,), **random)]
        if self.flips:
            x = torch.where(torch.rand(len(x), 1, 1, 1, **random) < 0.5, x.flip(-1), x)
        t, eps = torch.rand(len(x), **random), torch.randn(x.shape, **random)
        gamma = self.gamma_min + (self.gamma_max - self.gamma_min) * t
        g = gamma[:, None, None, None]
        z = torch.sigmoid(-g).sqrt() * x + torch.sigmoid(g).sqrt() * eps
        waves = [
            wave
            for n in (7, 8)
            for wave in (torch.sin(2.0**n * torch.pi * z), torch.cos(2.0**n * torch.pi * z))
        ]
        loss = ((eps - z - self.net(torch.cat([z, *waves], dim=1), t)) ** 2).mean()
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip, foreach=False)
        self.adam.step()
        with torch.no_grad():
            for average, value in zip(self.ema.parameters(), self.net.parameters()):
                average.lerp_(value, 1 - self.decay)
        return loss.detach()
