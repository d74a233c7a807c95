"""The preconditioning between a network and the bound.

`PreconditionedDenoiser` turns a network into eps_hat(z_t, gamma, coarse) in the orthonormal
coordinates of a scale. Preconditioning is
free: whatever it is, the error counted is that of unit noise in every orthonormal coordinate.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor, nn

from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.lattice import details_posterior, lattice_posterior
from pcdm_lib.maps.scales import ScaleSpec
from pcdm_lib.models.unet import UNet

PRECONDITIONINGS = ("none", "gaussian", "lattice")
FEATURES = ("none", "vdm", "lattice")
INPUTS = ("plain", "whitened")


def neighbour_differences(x: Tensor) -> Tensor:
    """Each pixel minus its left and minus its upper neighbour, (N, C, H, W) -> (N, 2C, H, W); 0 at
    the border.

    Args:
        x: (N, C, H, W).

    Returns:
        (N, 2C, H, W), the differences to the left first.
    """
    across, down = torch.zeros_like(x), torch.zeros_like(x)
    across[..., 1:] = x[..., 1:] - x[..., :-1]
    down[..., 1:, :] = x[..., 1:, :] - x[..., :-1, :]
    return torch.cat([across, down], dim=1)


class Whitening(nn.Module):
    """Channels turned to their principal axes, as many at a time as stand at one place of the view,
    each scaled to unit variance.

    Those are the colours of an image; of the wavelet, whose bands are channels of its view, the
    colours of all three bands. A rotation leaves white noise white, so noise of a known variance
    only adds to the variance along each axis.

    Args:
        channels: a multiple of `together`, group after group.
        together: size of the rotation, the same for all groups.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor

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
        """Take mean, axes and variances from data.

        Args:
            x: (N, channels, H, W).
            floor: a variance below it counts as that.
        """
        x = x.double()
        self.mean.copy_(x.mean(dim=(0, 2, 3)).reshape(self.mean.shape))
        x = x - self.mean
        places = x.unflatten(1, (-1, len(self.axes))).movedim(2, 0).flatten(1)
        self.axes.copy_(torch.linalg.eigh(places @ places.T / places.shape[1])[1].T)
        self.variance.copy_(
            self._rotate(x)
            .square()
            .mean(dim=(0, 2, 3))
            .clamp(min=floor)
            .reshape(self.variance.shape)
        )

    def forward(self, x: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """x (N, channels, H, W) whitened, where noise of that variance was added to what was
        fitted.

        Args:
            x: (N, channels, H, W).
            noise: variance of the noise in x, broadcastable to it.

        Returns:
            Of the shape of x.
        """
        return self._rotate(x - self.mean) / torch.sqrt(self.variance + noise)


class PreconditionedDenoiser(nn.Module):
    """eps_hat(z_t, gamma, coarse) = estimate without a network + its uncertainty * network.

    The estimate treats every coefficient as an independent Gaussian with its band's mean and
    variance (`fit`), restricted to the integers that an image can have given the coarser scales
    (`lattice`) or on the real line (`gaussian`); the network predicts what remains in units of that
    estimate's own standard deviation. `none` is VDM's choice: eps_hat = z_t + network.

    Source: Appendix B of the paper, Eqs. 43-44, for what the network is shown; the estimate is this
    library's.

    Args:
        hierarchy: the map.
        spec: the scale.
        gamma_range: the noise levels that are scaled to [0, 1] for the network's embedding.
        preconditioning: `lattice`, `gaussian` or `none`, as above.
        features: sines and cosines added to the input: `vdm` at the frequencies of VDM, `lattice`
            of where the (noisy) finer image's values stand between whole numbers, damped where
            noise hides it.
        inputs: `plain`, or `whitened`: the network sees the noisy scale and the coarser image
            whitened, and the differences between neighbouring pixels too, scaled to unit variance
            at every noise level. Contrast at an edge is small beside the range of an image, and a
            convolution whose inputs differ that much in size learns it late.
        unet: further arguments of `UNet`: channels, blocks, dropout, attention.

    Raises:
        ValueError: for an unknown name, or whitened inputs without preconditioning.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        hierarchy: HierarchicalMap,
        spec: ScaleSpec,
        gamma_range: tuple[float, float],
        preconditioning: str = "lattice",
        features: str = "lattice",
        inputs: str = "plain",
        **unet,
    ):
        super().__init__()
        for name, value, known in (
            ("preconditioning", preconditioning, PRECONDITIONINGS),
            ("features", features, FEATURES),
            ("inputs", inputs, INPUTS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if inputs == "whitened" and preconditioning == "none":
            raise ValueError(
                "whitened inputs are a kind of preconditioning: set inputs=plain, or "
                "preconditioning=gaussian or lattice"
            )
        self.map, self.spec, self.gamma_range = hierarchy, spec, gamma_range
        self.preconditioning, self.features = preconditioning, features
        # of the network alone, in training; the rest stays in the dtype of z_t
        self.autocast: torch.dtype | None = None
        channels = spec.shape[0]
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.full((channels, 1, 1), 0.5 / spec.gain))
        view, waves = spec.view_shape[0], {"none": 0, "vdm": 4, "lattice": 4}[features]
        phases = hierarchy.phase_channels(spec) if features == "lattice" else view
        condition = spec.condition_shape[0] if spec.condition_shape else 0
        whitening: dict[str, Whitening] = {}
        if inputs == "whitened":
            # the pyramid's view has its bands on neighbouring pixels, not in channels
            together = math.gcd(channels, view)
            whitening["scale"] = Whitening(channels, together)
            if spec.kind != "details":  # which are differences already
                whitening["edges"] = Whitening(2 * view, together)
            if condition:
                whitening["coarse"] = Whitening(condition, condition)
                whitening["coarse_edges"] = Whitening(2 * condition, condition)
        self.whitening = nn.ModuleDict(whitening)
        seen = (
            sum(w.variance.shape[0] for name, w in whitening.items() if name != "scale") + view
            if whitening
            else view + condition
        )
        net = UNet(seen + waves * phases, view, **unet)
        # channels-last: a tenth off the time of a training step at full resolution on a CPU
        # (benchmarks/); the stubs of torch leave this argument out
        self.net: UNet = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def multiple(self) -> int:
        """The sides of this scale's coordinates have to be multiples of it."""
        return max(self.net.stride * self.spec.shape[1] // self.spec.view_shape[1], 1)

    @torch.no_grad()
    def fit(self, z: Tensor, coarse: Tensor | None = None) -> None:
        """Take means, variances and colour axes from training images.

        Args:
            z: integer coordinates (N, *spec.shape).
            coarse: their coarser integers (N, C, h, w), which whitened inputs of a conditional
                scale need.

        Raises:
            ValueError: where whitened inputs get no coarser integers.
        """
        if "coarse" in self.whitening and coarse is None:
            raise ValueError(
                f"fit needs the coarser integers of scale {self.spec.name!r} too: its inputs are "
                f"whitened"
            )
        z = z.double()
        self.mean.copy_(z.mean(dim=(0, 2, 3)).reshape(self.mean.shape))
        # never below a quarter of an integer: a constant band is as well known as the lattice
        # allows
        self.std.copy_(z.std(dim=(0, 2, 3), correction=0).clamp(min=0.25).reshape(self.std.shape))
        given = {"scale": z, "edges": neighbour_differences(self.map.to_view(self.spec, z))}
        if coarse is not None:
            image = self.map.condition_image(self.spec, coarse)
            given |= {"coarse": image, "coarse_edges": neighbour_differences(image)}
        for name, whitening in self.whitening.items():
            # brightness runs over [-1, 1]
            grey_level = 1.0 if name in ("scale", "edges") else 2.0 / self.spec.max_value
            assert isinstance(whitening, Whitening)
            whitening.fit(given[name], floor=(0.25 * grey_level) ** 2)

    def forward(self, z_t: Tensor, gamma: Tensor, coarse: Tensor | None) -> Tensor:
        """eps_hat, the noise that the network sees in z_t.

        Args:
            z_t: noisy orthonormal coordinates (N, *spec.shape).
            gamma: log sigma^2 / alpha^2, (N,).
            coarse: integers rebuilt from the coarser scales; None for the base.

        Returns:
            (N, *spec.shape).
        """
        spec, g = self.spec, gamma.reshape(-1, 1, 1, 1)
        centre, tau = spec.to_axis(z_t, g)
        inputs = self._inputs(z_t, centre, tau, coarse) + self._waves(z_t, centre, tau, coarse)
        low, high = self.gamma_range
        with (
            torch.autocast(z_t.device.type, self.autocast)
            if self.autocast is not None
            else contextlib.nullcontext()
        ):
            out = self.net(torch.cat(inputs, dim=1), (gamma - low) / (high - low))
        out = self.map.from_view(spec, out.to(z_t.dtype))
        if self.preconditioning == "none":
            return z_t + out
        estimate, variance = self._estimate(centre, tau, coarse)
        # the floor keeps the square root's gradient finite where the lattice leaves no doubt
        return (centre - estimate + variance.clamp(min=1e-12).sqrt() * out) / tau

    def _inputs(
        self, z_t: Tensor, centre: Tensor, tau: Tensor, coarse: Tensor | None
    ) -> list[Tensor]:
        spec, image = self.spec, None
        if coarse is not None:
            image = self.map.condition_image(spec, coarse).to(z_t.dtype)
        if self.whitening:
            inputs = [self.map.to_view(spec, self.whitening["scale"](centre, tau**2))]
            if "edges" in self.whitening:
                inputs.append(
                    self.whitening["edges"](
                        neighbour_differences(self.map.to_view(spec, centre)), 2 * tau**2
                    )
                )
            if image is not None:
                inputs += [
                    self.whitening["coarse"](image),
                    self.whitening["coarse_edges"](neighbour_differences(image)),
                ]
            return inputs
        seen = (
            z_t
            if self.preconditioning == "none"
            else (centre - self.mean) / torch.sqrt(self.std**2 + tau**2)
        )
        return [self.map.to_view(spec, seen)] + ([] if image is None else [image])

    def _estimate(
        self, centre: Tensor, tau: Tensor, coarse: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        weight = self.std**2 / (self.std**2 + tau**2)
        mean, std = self.mean + weight * (centre - self.mean), tau * weight.sqrt()
        if self.preconditioning == "gaussian":
            return mean, (std**2).expand_as(mean)
        if self.spec.kind != "details":
            return lattice_posterior(mean, std)
        assert coarse is not None, "details stand beside the coarser scale"
        return details_posterior(mean, std, coarse)

    def _waves(
        self, z_t: Tensor, centre: Tensor, tau: Tensor, coarse: Tensor | None
    ) -> list[Tensor]:
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
