"""The order in which training visits images, and flips; all randomness from seeds that are passed
in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


def random_flip(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image of (B, C, H, W) left to right with probability one half; a new tensor.

    Args:
        batch: images (B, C, H, W).
        generator: of the choice.

    Returns:
        (B, C, H, W).
    """
    flip = torch.rand(len(batch), generator=generator, device=generator.device) < 0.5
    return torch.where(flip.to(batch.device)[:, None, None, None], batch.flip(-1), batch)


class BatchSampler:
    """Endless batches of indices into n images: every epoch visits each image once, in a new order.

    The order of an epoch depends on (seed, epoch) alone, so `state_dict` is five integers, and a
    run resumed from it sees the batches that the unbroken run would have seen. A batch may cross
    into the next epoch; with n < batch_size it crosses several.

    Args:
        n: images.
        batch_size: indices a batch.
        seed: of the order.

    Raises:
        ValueError: for n or batch_size below 1, or a negative seed.

    Example:
        >>> from pcdm_lib.training.batches import BatchSampler
        >>> sampler = BatchSampler(n=4, batch_size=2)
        >>> sorted([*sampler.next().tolist(), *sampler.next().tolist()])
        [0, 1, 2, 3]
    """

    def __init__(self, n: int, batch_size: int, seed: int = 0) -> None:
        for name, value, least in (("n", n, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                why = (
                    ": there are no images to sample, check what was loaded" if name == "n" else ""
                )
                raise ValueError(f"BatchSampler got {name}={value}, expected at least {least}{why}")
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._start(epoch=0, position=0)

    def _start(self, epoch: int, position: int) -> None:
        self.epoch, self.position = epoch, position
        self._order = torch.from_numpy(
            np.random.default_rng([self.seed, epoch]).permutation(self.n)
        )

    def next(self) -> torch.Tensor:
        """The next batch.

        Returns:
            Indices, int64 (batch_size,).
        """
        parts, missing = [], self.batch_size
        while missing:
            if self.position == self.n:
                self._start(self.epoch + 1, 0)
            part = self._order[self.position : self.position + missing]
            parts.append(part)
            self.position += len(part)
            missing -= len(part)
        return torch.cat(parts)

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield self.next()

    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands.

        Returns:
            Five integers by name.
        """
        return {key: getattr(self, key) for key in ("n", "batch_size", "seed", "epoch", "position")}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken.

        Args:
            state: what `state_dict` gave.

        Raises:
            ValueError: where it was taken from another kind of run, or is damaged.
        """
        for key in ("n", "batch_size", "seed"):
            if state[key] != getattr(self, key):
                found = f"the state has {key}={state[key]}, this sampler {key}={getattr(self, key)}"
                raise ValueError(f"{found}: resume with the data and settings of the saved run")
        if state["epoch"] < 0 or not 0 <= state["position"] <= self.n:
            place = f"epoch {state['epoch']}, position {state['position']}"
            raise ValueError(
                f"{place} lies outside a run over {self.n} images: the saved state is damaged"
            )
        self._start(state["epoch"], state["position"])
