"""Convolutions of whole numbers, whose results do not depend on the machine.

Weights and activations are whole numbers, held as float32. A float32 adds whole numbers without
rounding while all partial sums stay below 2^24, and then every order of summation gives the same
result: any number of threads, any instruction set, any size of batch. Each sum is multiplied by one
number and rounded, which IEEE 754 defines to the last bit. So two machines agree by proof and not
by luck; `check_sums` is the proof for given weights.

In training the same rounding stands in the forward pass, and gradients pass through it as if it
were not there (the straight-through estimator of Bengio and others, arXiv 1308.3432).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 127  # weights are from -127 to 127
LARGEST = 255  # of what a convolution takes
EXACT = 1 << 24  # float32 holds all whole numbers up to here
UNIT = 32  # an activation of 1 is 32 steps


class _Clamped(torch.autograd.Function):
    """Rounded and cut off; the gradient passes where nothing is cut off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((x >= low) & (x <= high))
        return x.round().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


class _Rounded(torch.autograd.Function):
    """Rounded; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


def clamped(x: Tensor, low: float, high: float) -> Tensor:
    """x rounded to whole numbers and cut off to a range.

    Args:
        x: any shape.
        low: the smallest result, a whole number.
        high: the largest.

    Returns:
        Whole numbers of the type of x; its gradient is 1 within the range and 0 outside.

    Example:
        >>> from pcdm_lib.models.integers import clamped
        >>> clamped(torch.tensor([-3.0, 0.6, 300.0]), 0, 255).tolist()
        [0.0, 1.0, 255.0]
    """
    return _Clamped.apply(x, low, high)


def active(x: Tensor) -> Tensor:
    """The activation between layers: negative numbers count an eighth, and all is rounded and cut
    off to what a convolution takes.

    With negative numbers cut off, whole blocks ended in training with nothing but zeros, and never
    came back.

    Args:
        x: whole numbers, any shape.

    Returns:
        Whole numbers from -255 to 255.

    Example:
        >>> from pcdm_lib.models.integers import active
        >>> active(torch.tensor([-160.0, 3.0, 300.0])).tolist()
        [-20.0, 3.0, 255.0]
    """
    return clamped(F.leaky_relu(x, 0.125), -LARGEST, LARGEST)


def rounded(x: Tensor) -> Tensor:
    """x rounded to whole numbers, half to even; its gradient is 1.

    Args:
        x: any shape.

    Returns:
        Of the shape and type of x.
    """
    return _Rounded.apply(x)


def whole_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 and the length of a step, one an output channel.

    A step is as long as the largest weight asks for, and longer where the sum of the weights would
    otherwise let a partial sum reach 2^24. All of it is divisions of whole numbers and maxima, so
    it is the same on any machine.

    Args:
        weight: (out, in, kh, kw).

    Returns:
        Whole numbers of the shape of `weight`, and steps (out, 1, 1, 1): their product is near to
        `weight`.
    """
    step = (weight.abs().amax(dim=(1, 2, 3), keepdim=True) / LEVELS).clamp(min=1e-8)
    half = weight[0].numel() / 2  # what rounding can add to the sum
    total = (weight / step).round().abs().sum(dim=(1, 2, 3), keepdim=True)  # exact: below 2^24
    longer = (total + half) / (EXACT // LARGEST - 2 - half)
    step = step * longer.clamp(min=1.0)
    return (weight / step).round(), step


class WholeConv2d(nn.Conv2d):
    """A convolution of whole numbers from -255 to 255 by whole weights, rounded to whole numbers.

    The sums are exact (see the module). `weight` and `bias` hold floats, as the optimiser needs
    them; what counts is their rounding.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        kernel: side of the kernel, odd; the sides of the image stay.
        groups: blocks of channels that do not see each other.
        bias: whether to add one.

    Raises:
        ValueError: for so many inputs that no sum of them could be exact.

    Example:
        >>> from pcdm_lib.models.integers import WholeConv2d
        >>> layer = WholeConv2d(2, 3, 3).eval()
        >>> x = torch.randint(0, 256, (1, 2, 8, 8)).float()
        >>> y = layer(x)
        >>> bool((y == y.round()).all()), bool((layer(x.flip(0)).flip(0) == y).all())
        (True, True)
    """

    mask: Tensor | None  # which weights count, where not all do

    def __init__(self, c_in: int, c_out: int, kernel: int, groups: int = 1, bias: bool = True):
        super().__init__(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=bias)
        if self.weight[0].numel() >= EXACT // LARGEST:
            raise ValueError(
                f"a sum of {self.weight[0].numel()} products: too many to add exactly in float32; "
                f"make the network narrower"
            )
        if bias:
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]
        self.register_buffer("mask", None, persistent=False)

    def whole(self) -> tuple[Tensor, Tensor]:
        """What a machine computes with.

        Returns:
            Whole weights, and steps (out, 1, 1, 1).
        """
        return whole_weights(self.weight if self.mask is None else self.weight * self.mask)

    def sums(self, x: Tensor) -> Tensor:
        """The exact sums times their steps, before rounding and without the bias.

        Args:
            x: whole numbers from -255 to 255.

        Returns:
            (N, c_out, h, w).
        """
        if not self.training:
            whole, step = self.whole()
            return self._conv_forward(x, whole, None) * step.view(-1, 1, 1)
        weight = self.weight if self.mask is None else self.weight * self.mask
        with torch.no_grad():
            whole, step = whole_weights(weight)
            away = whole * step - weight
        return self._conv_forward(x, weight + away, None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, h, w) -> (N, c_out, h, w), whole numbers both.

        Args:
            x: whole numbers from -255 to 255.

        Returns:
            Whole numbers.
        """
        found = rounded(self.sums(x))
        return found if self.bias is None else found + rounded(self.bias * UNIT).view(-1, 1, 1)


def check_sums(module: nn.Module) -> int:
    """The largest partial sum that any convolution of whole numbers in a network can reach.

    Args:
        module: with `WholeConv2d` layers.

    Returns:
        The bound: below 2^24.

    Raises:
        ValueError: where it is 2^24 or more, so that the results could differ between machines, or
            where weights are not finite.

    Example:
        >>> from pcdm_lib.models.integers import WholeConv2d, check_sums
        >>> check_sums(WholeConv2d(96, 96, 3)) < 2**24
        True
    """
    largest = 0
    for name, layer in module.named_modules():
        if isinstance(layer, WholeConv2d):
            whole = layer.whole()[0]
            if not bool(torch.isfinite(whole).all()):
                raise ValueError(f"weights of {name} are not finite: the model is broken")
            sums = whole.to(torch.int64).abs().sum(dim=(1, 2, 3))
            bound = LARGEST * int(sums.max())
            if bound >= EXACT:
                raise ValueError(
                    f"sums in {name} reach {bound}, and float32 is exact below {EXACT} only: "
                    f"train a narrower network, or with weight decay"
                )
            largest = max(largest, bound)
    return largest
