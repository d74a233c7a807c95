"""The noise-prediction network, and the preconditioning that stands between it and the bound.

`UNet` is the network of VDM (arXiv 2107.00630, appendix on architecture) as the paper's Appendix B
uses it: no resampling between its blocks, self-attention in the middle only, the noise level added
in every block. With more than one entry in `channels` it halves the side between stages, which is
what the small presets do to learn fast on a CPU.

`PreconditionedDenoiser` turns it into eps_hat(z_t, gamma, coarse) in the orthonormal coordinates of
a scale. Preconditioning is
free: whatever it is, the error counted is that of unit noise in every orthonormal coordinate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _norm(channels: int) -> nn.GroupNorm:
    # a group of one channel would wipe out whatever is constant over an image, the noise level
    # included
    groups = 32 if channels >= 64 else 8 if channels >= 32 else max(channels // 4, 1)
    return nn.GroupNorm(math.gcd(groups, channels), channels)


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def embed_level(level: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of a noise level scaled to [0, 1], (N,) -> (N, dim), as in VDM with its
    factor of 1000.

    Args:
        level: (N,) in [0, 1].
        dim: numbers an image.

    Returns:
        (N, dim).
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, device=level.device, dtype=level.dtype)
        * (-math.log(10_000.0) / max(half - 1, 1))
    )
    angles = 1000.0 * level[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim - 2 * half))


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, + noise level, norm, SiLU, dropout, conv (starting at zero), + shortcut.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        c_level: numbers that describe the noise level.
        dropout: its probability.
    """

    def __init__(self, c_in: int, c_out: int, c_level: int, dropout: float):
        super().__init__()
        self.norm_in, self.conv_in = _norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.level = _zero(nn.Linear(c_level, c_out))
        self.norm_out, self.conv_out = _norm(c_out), _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """(N, c_in, H, W) and level (N, c_level) -> (N, c_out, H, W).

        Args:
            x: (N, c_in, H, W).
            level: embedded noise level, (N, c_level).

        Returns:
            (N, c_out, H, W).
        """
        h = self.conv_in(F.silu(self.norm_in(x))) + self.level(level)[:, :, None, None]
        return self.shortcut(x) + self.conv_out(self.dropout(F.silu(self.norm_out(h))))


class Attention(nn.Module):
    """Single-head self-attention over positions with a shortcut.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = _norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape.

        Args:
            x: (N, channels, H, W).

        Returns:
            Of the shape of x.
        """
        q, k, v = (t.flatten(2).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, dim=1))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.out(h)


class UNet(nn.Module):
    """(N, in_channels, H, W) and noise level (N,) in [0, 1] -> (N, out_channels, H, W), zero at the
    start of training.

    Source: VDM's appendix on architecture; Appendix B of the paper.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        channels: width of each stage; one entry is VDM's network at constant resolution.
        blocks: residual blocks on the way down in each stage (one more on the way up).
        dropout: its probability in residual blocks.
        attention: whether the middle has self-attention.

    Raises:
        ValueError: for no stage, no block, or a dropout outside [0, 1).

    Example:
        >>> from pcdm_lib.models import UNet
        >>> net = UNet(3, 3, channels=(16,), blocks=1)
        >>> net(torch.rand(2, 3, 8, 8), torch.tensor([0.1, 0.9])).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: tuple[int, ...] = (128,),
        blocks: int = 32,
        dropout: float = 0.1,
        attention: bool = True,
    ):
        super().__init__()
        if not channels or blocks < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"UNet needs at least one stage and one block and dropout in [0, 1), got "
                f"{channels}, {blocks}, {dropout}"
            )
        self.stride = 2 ** (len(channels) - 1)
        self.embedding, c_level = channels[0], 4 * channels[0]
        self.level = nn.Sequential(
            nn.Linear(channels[0], c_level), nn.SiLU(), nn.Linear(c_level, c_level), nn.SiLU()
        )
        self.entry = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = channels[0], [channels[0]]
        for stage, c in enumerate(channels):
            if stage:
                self.down.append(nn.Conv2d(width, c, 2, stride=2))
                width = c
                skips.append(c)
            for _ in range(blocks):
                self.down.append(ResidualBlock(width, c, c_level, dropout))
                width = c
                skips.append(c)
        self.middle_in = ResidualBlock(width, width, c_level, dropout)
        self.middle_attention = Attention(width) if attention else nn.Identity()
        self.middle_out = ResidualBlock(width, width, c_level, dropout)
        for stage in reversed(range(len(channels))):
            for _ in range(blocks + 1):
                self.up.append(
                    ResidualBlock(width + skips.pop(), channels[stage], c_level, dropout)
                )
                width = channels[stage]
            if stage:
                self.up.append(nn.ConvTranspose2d(width, channels[stage - 1], 2, stride=2))
                width = channels[stage - 1]
        self.exit_norm, self.exit = (
            _norm(width),
            _zero(nn.Conv2d(width, out_channels, 3, padding=1)),
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """The network's output, zero at the start of training.

        Args:
            x: (N, in_channels, H, W).
            level: noise level (N,) in [0, 1].

        Returns:
            (N, out_channels, H, W).

        Raises:
            ValueError: for sides that the stages cannot halve.
        """
        if x.shape[-1] % self.stride or x.shape[-2] % self.stride:
            raise ValueError(
                f"this network halves the side {self.stride.bit_length() - 1} times, got "
                f"{tuple(x.shape[-2:])}: "
                "use a preset with fewer stages"
            )
        level = self.level(embed_level(level, self.embedding))
        h = self.entry(x)
        skips = [h]
        for module in self.down:
            h = module(h, level) if isinstance(module, ResidualBlock) else module(h)
            skips.append(h)
        h = self.middle_out(self.middle_attention(self.middle_in(h, level)), level)
        for module in self.up:
            h = (
                module(torch.cat([h, skips.pop()], dim=1), level)
                if isinstance(module, ResidualBlock)
                else module(h)
            )
        return self.exit(F.silu(self.exit_norm(h)))
