"""The noise-prediction network, and the preconditioning that stands between it and the bound.

`UNet` is the network of VDM (arXiv 2107.00630, appendix on architecture) as the paper's Appendix B uses it: no resampling between
its blocks, self-attention in the middle only, the noise level added in every block. With more than one entry in
`channels` it halves the side between stages, which is what the small presets do to learn fast on a CPU.

`PreconditionedDenoiser` turns it into eps_hat(z_t, gamma, coarse) in the orthonormal coordinates of a scale. Preconditioning is
free: whatever it is, the error counted is that of unit noise in every orthonormal coordinate.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdm_lib.maps import HierarchicalMap
from pcdm_lib.scales import ScaleSpec

PRECONDITIONINGS = ("none", "gaussian", "lattice")
FEATURES = ("none", "vdm", "lattice")
INPUTS = ("plain", "whitened")


def _norm(channels: int) -> nn.GroupNorm:
    # a group of one channel would wipe out whatever is constant over an image, the noise level included
    groups = 32 if channels >= 64 else 8 if channels >= 32 else max(channels // 4, 1)
    return nn.GroupNorm(math.gcd(groups, channels), channels)


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def embed_level(level: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of a noise level scaled to [0, 1], (N,) -> (N, dim), as in VDM with its factor of 1000."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=level.device, dtype=level.dtype) * (-math.log(10_000.0) / max(half - 1, 1)))
    angles = 1000.0 * level[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim - 2 * half))


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, + noise level, norm, SiLU, dropout, conv (starting at zero), + shortcut."""

    def __init__(self, c_in: int, c_out: int, c_level: int, dropout: float):
        super().__init__()
        self.norm_in, self.conv_in = _norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.level = _zero(nn.Linear(c_level, c_out))
        self.norm_out, self.conv_out = _norm(c_out), _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x))) + self.level(level)[:, :, None, None]
        return self.shortcut(x) + self.conv_out(self.dropout(F.silu(self.norm_out(h))))


class Attention(nn.Module):
    """Single-head self-attention over positions with a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = _norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.flatten(2).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, dim=1))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.out(h)


class UNet(nn.Module):
    """(N, in_channels, H, W) and noise level (N,) in [0, 1] -> (N, out_channels, H, W), zero at the start of training.

    Args:
        channels: width of each stage; one entry is VDM's network at constant resolution.
        blocks: residual blocks on the way down in each stage (one more on the way up).
    """

    def __init__(self, in_channels: int, out_channels: int, channels: tuple[int, ...] = (128,), blocks: int = 32,
                 dropout: float = 0.1, attention: bool = True):
        super().__init__()
        if not channels or blocks < 1 or not 0 <= dropout < 1:
            raise ValueError(f"UNet needs at least one stage and one block and dropout in [0, 1), got {channels}, {blocks}, {dropout}")
        self.stride = 2 ** (len(channels) - 1)
        self.embedding, c_level = channels[0], 4 * channels[0]
        self.level = nn.Sequential(nn.Linear(channels[0], c_level), nn.SiLU(), nn.Linear(c_level, c_level), nn.SiLU())
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
                self.up.append(ResidualBlock(width + skips.pop(), channels[stage], c_level, dropout))
                width = channels[stage]
            if stage:
                self.up.append(nn.ConvTranspose2d(width, channels[stage - 1], 2, stride=2))
                width = channels[stage - 1]
        self.exit_norm, self.exit = _norm(width), _zero(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        if x.shape[-1] % self.stride or x.shape[-2] % self.stride:
            raise ValueError(f"this network halves the side {self.stride.bit_length() - 1} times, got {tuple(x.shape[-2:])}: "
                             "use a preset with fewer stages")
        level = self.level(embed_level(level, self.embedding))
        h = self.entry(x)
        skips = [h]
        for module in self.down:
            h = module(h, level) if isinstance(module, ResidualBlock) else module(h)
            skips.append(h)
        h = self.middle_out(self.middle_attention(self.middle_in(h, level)), level)
        for module in self.up:
            h = module(torch.cat([h, skips.pop()], dim=1), level) if isinstance(module, ResidualBlock) else module(h)
        return self.exit(F.silu(self.exit_norm(h)))


# ---------------------------------------------------------------- preconditioning


class LatticeMoments(NamedTuple):
    """Sums over the integers k of a normalised Gaussian weight w_k, about the integer nearest to its mean: `first` = sum k w_k,
    `second` = sum k^2 w_k, and the same with alternating signs, `alternating[j]` = sum (-1)^k k^j w_k."""

    nearest: Tensor
    first: Tensor
    second: Tensor
    alternating: tuple[Tensor, Tensor, Tensor]


def lattice_moments(mean: Tensor, std: Tensor) -> LatticeMoments:
    """Moments of N(mean, std^2) restricted to the integers.

    Two regimes of the theta function: seven terms around the nearest integer where the Gaussian is narrow; where it is wide (std
    above 0.6) the first harmonic of its Fourier series, the next one being below 1e-6.
    """
    nearest = mean.round()
    f = mean - nearest
    narrow = std.clamp(min=1e-3, max=0.6)
    k = torch.arange(-3, 4, device=f.device, dtype=f.dtype).reshape(7, *[1] * f.ndim)
    weight = torch.softmax(-((f - k) ** 2) / (2 * narrow**2), dim=0)
    signed = weight * (1 - 2 * (k % 2))
    sums = [(weight * k).sum(0), (weight * k**2).sum(0), signed.sum(0), (signed * k).sum(0), (signed * k**2).sum(0)]
    # characteristic function at 0 and at pi, and its derivatives there
    tau2 = std.clamp(min=0.6) ** 2
    decay, sine, cosine = 2 * torch.exp(-2 * math.pi**2 * tau2), torch.sin(2 * math.pi * f), torch.cos(2 * math.pi * f)
    total = 1 + decay * cosine
    half, half_sine, half_cosine = 2 * torch.exp(-(math.pi**2) * tau2 / 2), torch.sin(math.pi * f), torch.cos(math.pi * f)
    wide = [
        f - 2 * math.pi * tau2 * decay * sine / total,
        f**2 + tau2 - decay * tau2 * (4 * math.pi**2 * tau2 * cosine + 4 * math.pi * f * sine) / total,
        half * half_cosine / total,
        half * (f * half_cosine - math.pi * tau2 * half_sine) / total,
        half * ((tau2 - (math.pi * tau2) ** 2 + f**2) * half_cosine - 2 * math.pi * tau2 * f * half_sine) / total,
    ]
    first, second, *alternating = (torch.where(std > 0.6, w, n) for w, n in zip(wide, sums))
    return LatticeMoments(nearest, first, second, tuple(alternating))


def lattice_posterior(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of N(mean, std^2) restricted to the integers."""
    m = lattice_moments(mean, std)
    return m.nearest + m.first, (m.second - m.first**2).clamp(min=0)


def details_posterior(mean: Tensor, std: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of independent Gaussians for (p, q, r) restricted to the integers that belong to an image.

    Those are p = s + 2 k_p and so on in parity, with s + p + q + r = 0 (mod 4): k_p + k_q + k_r has a known parity. The
    constraint enters through (1 + sign * (-1)^(k_p + k_q + k_r)) / 2, so three sums with alternating signs are all that it takes.

    Args:
        mean, std: (N, 3C, h, w), band after band. coarse: s, integers (N, C, h, w).
    """
    parity = coarse & 1
    offset = torch.cat([parity] * 3, dim=1).to(mean.dtype)
    m = lattice_moments((mean - offset) / 2, std / 2)
    sign = 1 - 2 * (((coarse + 3 * parity) // 2) & 1).to(mean.dtype)
    flips = 1 - 2 * (m.nearest % 2)  # the sums are about the nearest integer
    a, b, c = (v * flips for v in m.alternating)
    a_p, a_q, a_r = a.chunk(3, dim=1)
    others = torch.cat([sign * a_q * a_r, sign * a_p * a_r, sign * a_p * a_q], dim=1)
    chance = (1 + torch.cat([sign * a_p * a_q * a_r] * 3, dim=1)).clamp(min=1e-6)
    first = ((m.first + others * b) / chance).clamp(min=-2.0, max=2.0)
    second = (m.second + others * c) / chance
    return offset + 2 * (m.nearest + first), 4 * (second - first**2).clamp(min=0)


def differences(x: Tensor) -> Tensor:
    """Each pixel minus its left and minus its upper neighbour, (N, C, H, W) -> (N, 2C, H, W); 0 at the border."""
    across, down = torch.zeros_like(x), torch.zeros_like(x)
    across[..., 1:] = x[..., 1:] - x[..., :-1]
    down[..., 1:, :] = x[..., 1:, :] - x[..., :-1, :]
    return torch.cat([across, down], dim=1)


class Whitening(nn.Module):
    """Channels turned to their principal axes, as many at a time as stand at one place of the view, each scaled to unit variance.

    Those are the colours of an image; of the wavelet, whose bands are channels of its view, the colours of all three bands. A rotation
    leaves white noise white, so noise of a known variance only adds to the variance along each axis.

    Args:
        channels: a multiple of `together`, group after group. together: size of the rotation, the same for all groups.
    """

    def __init__(self, channels: int, together: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("axes", torch.eye(together))
        self.register_buffer("variance", torch.ones(channels, 1, 1))

    def _rotate(self, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (-1, len(self.axes)))
        return torch.einsum("cd,ngdhw->ngchw", self.axes.to(x.dtype), groups).flatten(1, 2)

    @torch.no_grad()
    def fit(self, x: Tensor, floor: float) -> None:
        """Take mean, axes and variances from (N, channels, H, W); a variance below `floor` counts as that."""
        x = x.double()
        self.mean.copy_(x.mean(dim=(0, 2, 3)).reshape(self.mean.shape))
        x = x - self.mean
        places = x.unflatten(1, (-1, len(self.axes))).movedim(2, 0).flatten(1)
        self.axes.copy_(torch.linalg.eigh(places @ places.T / places.shape[1])[1].T)
        self.variance.copy_(self._rotate(x).square().mean(dim=(0, 2, 3)).clamp(min=floor).reshape(self.variance.shape))

    def forward(self, x: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """x (N, channels, H, W) whitened, where noise of that variance was added to what was fitted."""
        return self._rotate(x - self.mean) / torch.sqrt(self.variance + noise)


class PreconditionedDenoiser(nn.Module):
    """eps_hat(z_t, gamma, coarse) = estimate without a network + its uncertainty * network.

    The estimate treats every coefficient as an independent Gaussian with its band's mean and variance (`fit`), restricted to the
    integers that an image can have given the coarser scales (`lattice`) or on the real line (`gaussian`); the network predicts what
    remains in units of that estimate's own standard deviation. `none` is VDM's choice: eps_hat = z_t + network.

    Args:
        gamma_range: the noise levels that are scaled to [0, 1] for the network's embedding.
        inputs: `plain`, or `whitened`: the network sees the noisy scale and the coarser image whitened, and the differences between
            neighbouring pixels too, scaled to unit variance at every noise level. Contrast at an edge is small beside the range of an
            image, and a convolution whose inputs differ that much in size learns it late.
        features: sines and cosines added to the input: `vdm` at the frequencies of VDM, `lattice` of where the (noisy) finer
            image's values stand between whole numbers, damped where noise hides it.
    """

    def __init__(self, hierarchy: HierarchicalMap, spec: ScaleSpec, gamma_range: tuple[float, float], preconditioning: str = "lattice",
                 features: str = "lattice", inputs: str = "plain", **unet):
        super().__init__()
        for name, value, known in (("preconditioning", preconditioning, PRECONDITIONINGS), ("features", features, FEATURES),
                                   ("inputs", inputs, INPUTS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if inputs == "whitened" and preconditioning == "none":
            raise ValueError("whitened inputs are a kind of preconditioning: set inputs=plain, or preconditioning=gaussian or lattice")
        self.map, self.spec, self.gamma_range = hierarchy, spec, gamma_range
        self.preconditioning, self.features = preconditioning, features
        self.autocast: torch.dtype | None = None  # of the network alone, in training; the rest stays in the dtype of z_t
        channels = spec.shape[0]
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.full((channels, 1, 1), 0.5 / spec.gain))
        view, waves = spec.view_shape[0], {"none": 0, "vdm": 4, "lattice": 4}[features]
        phases = hierarchy.phase_channels(spec) if features == "lattice" else view
        condition = spec.condition_shape[0] if spec.condition_shape else 0
        self.whitening = nn.ModuleDict()
        if inputs == "whitened":
            together = math.gcd(channels, view)  # the pyramid's view has its bands on neighbouring pixels, not in channels
            self.whitening["scale"] = Whitening(channels, together)
            if spec.kind != "details":  # which are differences already
                self.whitening["edges"] = Whitening(2 * view, together)
            if condition:
                self.whitening["coarse"] = Whitening(condition, condition)
                self.whitening["coarse_edges"] = Whitening(2 * condition, condition)
        seen = sum(w.variance.shape[0] for name, w in self.whitening.items() if name != "scale") + view if self.whitening else view + condition
        # channels-last: a tenth off the time of a training step at full resolution on a CPU (benchmarks/)
        self.net = UNet(seen + waves * phases, view, **unet).to(memory_format=torch.channels_last)

    @property
    def multiple(self) -> int:
        """The sides of this scale's coordinates have to be multiples of it."""
        return max(self.net.stride * self.spec.shape[1] // self.spec.view_shape[1], 1)

    @torch.no_grad()
    def fit(self, z: Tensor, coarse: Tensor | None = None) -> None:
        """Take means, variances and colour axes from the integer coordinates (N, ...) of training images, and from their coarser integers,
        which whitened inputs of a conditional scale need."""
        if "coarse" in self.whitening and coarse is None:
            raise ValueError(f"fit needs the coarser integers of scale {self.spec.name!r} too: its inputs are whitened")
        z = z.double()
        self.mean.copy_(z.mean(dim=(0, 2, 3)).reshape(self.mean.shape))
        # never below a quarter of an integer: a constant band is as well known as the lattice allows
        self.std.copy_(z.std(dim=(0, 2, 3), correction=0).clamp(min=0.25).reshape(self.std.shape))
        given = {"scale": z, "edges": differences(self.map.to_view(self.spec, z))}
        if coarse is not None:
            image = self.map.condition_image(self.spec, coarse)
            given |= {"coarse": image, "coarse_edges": differences(image)}
        for name, whitening in self.whitening.items():
            grey_level = 1.0 if name in ("scale", "edges") else 2.0 / self.spec.max_value  # brightness runs over [-1, 1]
            whitening.fit(given[name], floor=(0.25 * grey_level) ** 2)

    def forward(self, z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
        spec, g = self.spec, gamma.reshape(-1, 1, 1, 1)
        ratio = torch.exp(g / 2)  # sigma / alpha
        # on the axis of the integers: centre = z + tau * eps
        centre, tau = (z_t * torch.sqrt(1 + ratio**2) - spec.shift) / spec.gain, ratio / spec.gain
        inputs = self._inputs(z_t, centre, tau, coarse) + self._waves(z_t, centre, tau, coarse)
        low, high = self.gamma_range
        with torch.autocast(z_t.device.type, self.autocast) if self.autocast is not None else contextlib.nullcontext():
            out = self.net(torch.cat(inputs, dim=1), (gamma - low) / (high - low))
        out = self.map.from_view(spec, out.to(z_t.dtype))
        if self.preconditioning == "none":
            return z_t + out
        estimate, variance = self._estimate(centre, tau, coarse)
        # the floor keeps the square root's gradient finite where the lattice leaves no doubt
        return (centre - estimate + variance.clamp(min=1e-12).sqrt() * out) / tau

    def _inputs(self, z_t: Tensor, centre: Tensor, tau: Tensor, coarse: Tensor | None) -> list[Tensor]:
        spec, image = self.spec, None
        if coarse is not None:
            image = self.map.condition_image(spec, coarse).to(z_t.dtype)
        if self.whitening:
            inputs = [self.map.to_view(spec, self.whitening["scale"](centre, tau**2))]
            if "edges" in self.whitening:
                inputs.append(self.whitening["edges"](differences(self.map.to_view(spec, centre)), 2 * tau**2))
            if image is not None:
                inputs += [self.whitening["coarse"](image), self.whitening["coarse_edges"](differences(image))]
            return inputs
        seen = z_t if self.preconditioning == "none" else (centre - self.mean) / torch.sqrt(self.std**2 + tau**2)
        return [self.map.to_view(spec, seen)] + ([] if image is None else [image])

    def _estimate(self, centre: Tensor, tau: Tensor, coarse: Tensor | None) -> tuple[Tensor, Tensor]:
        weight = self.std**2 / (self.std**2 + tau**2)
        mean, std = self.mean + weight * (centre - self.mean), tau * weight.sqrt()
        if self.preconditioning == "gaussian":
            return mean, (std**2).expand_as(mean)
        return details_posterior(mean, std, coarse) if self.spec.kind == "details" else lattice_posterior(mean, std)

    def _waves(self, z_t: Tensor, centre: Tensor, tau: Tensor, coarse: Tensor | None) -> list[Tensor]:
        if self.features == "none":
            return []
        if self.features == "vdm":
            angles = [2.0**n * math.pi * self.map.to_view(self.spec, z_t) for n in (7, 8)]
            return [wave for angle in angles for wave in (angle.sin(), angle.cos())]
        phase, gain = self.map.lattice_phase(self.spec, centre, coarse)
        waves = []
        for period in (1.0, 2.0):
            angle = 2 * math.pi / period * phase
            damp = torch.exp(-((2 * math.pi * gain / period * tau) ** 2) / 2)
            waves += [damp * angle.sin(), damp * angle.cos()]
        return waves
