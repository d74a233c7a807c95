"""Is an estimator that minimises the earth mover's distance of scores consistent, and what does it
cost? (The open question of the paper's conclusion.)

A small exponential family in which everything can be computed, and three ways of minimising such a
distance without knowing the true score s.

**Squares.** Let f_s be the part of an error f in Haar scale s. Training minimises

    E sum_s w_s |f_s|^2 = E f' A f,        A = sum_s w_s P_s.

`transport_weights` takes w_s = C_s^2 from `scale_constants`. Then W(f)^2 <= S sum_s w_s |f_s|^2 for
S scales: the distance is bounded by what is minimised. Integration by parts (Hyvarinen 2005; A is
constant, so nothing changes) gives

    1/2 E (s_theta - s)' A (s_theta - s) = E[ 1/2 s_theta' A s_theta + div(A s_theta) ] + c,    (1)

where c does not depend on theta. The sample mean of the right-hand side needs no s.

*Consistent* for every A > 0, theta in a compact set, in every family that is regular (Hyvarinen's
conditions: s_theta differentiable, second moments finite, p s_theta zero at infinity) and
identifiable by its score: (1) is minimal where s_theta = s, and that must be the truth alone. Where
the support of p is connected, identifiable is enough. Where it has pieces that do not touch, a
score does not tell their weights.

For a Gaussian with precision Q = sum_i theta_i B_i the score -Q x is linear in theta, and (1) is a
quadratic form. So theta_hat = H_n^-1 g in closed form, with

    (H_n)_ij = mean(x' B_i A B_j x),        g_i = tr(A B_i),
    sqrt(n) (theta_hat - theta) -> N(0, H^-1 V H^-1),
    H_ij = tr(B_i A B_j Sigma),    V_ij = 2 tr(M_i Sigma M_j Sigma),

M_i the symmetric part of B_i A Q (`score_matching_covariance`).

*Efficient in the limit* where A is proportional to the true covariance: M_i = B_i, H = 2 I and
V = 4 I with the Fisher information I. Only at the truth are the equations mean(x' B_i x) =
tr(B_i Sigma) those of maximum likelihood, so for finite n the two estimates differ. Such an A, or
weights by the field's own length, need theta: in practice a first estimate of it.

**The distance itself.** E W(s_theta - s) is minimal at s_theta = s as well. But W is no square:
there is no cross term to integrate by parts, and s is in it. With the true score put in (the
oracle) it gives theta exactly from as many data as make it identifiable, and is no estimator. What
remains is denoising (Vincent 2011): x_noisy = alpha x + sigma eps, and minimise

    mean W(eps - m_theta(x_noisy)),        m_theta = E_theta[eps | x_noisy].

Its minimum over all functions m is not the posterior's mean but its *W-median*. Where the posterior
is symmetric both are one: *consistent in every Gaussian family*, theta in a compact set (a norm's
mean over a symmetric law is minimal at its centre: average |r + c| and |r - c|). In general they
differ, and the estimator is *not consistent*: `tilted_mixture` has a counterexample.

`denoising_covariance` is the sandwich of the Gaussian case. With r = eps - m ~ N(0, S) independent
of x_noisy, g the gradient of W at r, and D_i the derivative of the noisy precision,

    H_ij = sigma^2 tr(D_i B D_j Sigma_noisy),    B = E dg/dr = E[g r'] S^-1  (Stein),
    V_ij = sigma^2 tr(D_i G D_j Sigma_noisy),    G = E g g'.                                    (2)

By least squares with general weights (Aitken) the best A of the squares is S^-1 there. It leans to
the fine scales, against transport's. With small noise that is averaged out, as by long training, it
leans to the coarse ones again (`averaged_denoising`). Covariances are those of
sqrt(n) (theta_hat - theta).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from pcdm_lib.maps.wavelet import HaarWavelet
from pcdm_lib.transport.bound import scale_constants
from pcdm_lib.transport.exact import potential


# ---------------------------------------------------------------- a Gaussian field on a grid
class GridField:
    """Zero-mean Gaussian field on side x side pixels with precision theta_1 I + theta_2 Laplacian
    (free border): an exponential family in theta.

    theta_2 > 0: neighbours are alike, over a length of about sqrt(theta_2 / theta_1) pixels; 0:
    white noise; < 0: neighbours differ. Needs theta_1 > 0 and theta_1 + 8 theta_2 > 0. Everything
    is kept in the Laplacian's eigenbasis, a cosine transform: `vectors` (d, d), `values` (d,), d =
    side^2.
    """

    def __init__(self, side: int):
        line = 2 * np.eye(side) - np.eye(side, k=1) - np.eye(side, k=-1)
        line[0, 0] = line[-1, -1] = 1 if side > 1 else 0
        self.side, self.dims = side, side**2
        self.laplacian = np.kron(line, np.eye(side)) + np.kron(np.eye(side), line)
        # cosines and not `eigh`, whose choice within equal eigenvalues, and with it every draw,
        # would be the machine's
        wave, place = np.arange(side), np.arange(side) + 0.5
        basis = np.cos(math.pi / side * np.outer(place, wave)) * np.where(
            wave, math.sqrt(2 / side), math.sqrt(1 / side)
        )
        own = 2 - 2 * np.cos(math.pi / side * wave)
        self.values, self.vectors = np.add.outer(own, own).ravel(), np.kron(basis, basis)
        self.bases = np.stack([np.eye(self.dims), self.laplacian])
        self.spectra = np.stack([np.ones(self.dims), self.values])  # of the bases, (2, d)

    def precisions(self, theta: Sequence[float] | np.ndarray) -> np.ndarray:
        """Eigenvalues of the precision, (..., d), for parameters (..., 2). ValueError where one is
        not positive."""
        found = np.asarray(theta) @ self.spectra
        if not (found > 0).all():
            raise ValueError(
                f"theta must give a positive precision (theta_1 > 0, theta_1 + 8 theta_2 > 0 is "
                f"enough), got {np.asarray(theta).tolist()}"
            )
        return found

    def matrix(self, spectrum: np.ndarray) -> np.ndarray:
        """The matrix with these eigenvalues in the Laplacian's basis, (d, d)."""
        return (self.vectors * spectrum) @ self.vectors.T

    def covariance(self, theta: Sequence[float]) -> np.ndarray:
        """(d, d)."""
        return self.matrix(1 / self.precisions(theta))

    def draw(
        self, theta: Sequence[float], shape: tuple[int, ...], random: np.random.Generator
    ) -> np.ndarray:
        """Images as rows, (*shape, d)."""
        return (
            random.normal(size=(*shape, self.dims))
            / np.sqrt(self.precisions(theta))
            @ self.vectors.T
        )

    def fisher_information(self, theta: Sequence[float]) -> np.ndarray:
        """Of one image, (2, 2): 1/2 tr(B_i Sigma B_j Sigma)."""
        scaled = self.spectra / self.precisions(theta)
        return scaled @ scaled.T / 2


def transport_weights(side: int, create_cost: float | None = None) -> np.ndarray:
    """A = sum_s w_s P_s (d, d) with w_s = C_s^2 of the transport bound, Haar's levels down to one
    pixel, mass created at `create_cost`; mean weight 1.

    Level j of the details has 4^j times a constant, the weights of a Sobolev norm of order -1, up
    to the level whose way is worth more than creation; there, and for the mean, it is
    create_cost^2. By default half the side, where all levels count and the mean has about the
    weight of a next one.
    """
    levels = int(math.log2(side))
    constants = scale_constants(
        (side, side), levels, create_cost=side / 2 if create_cost is None else create_cost
    )
    haar = haar_matrix(side)
    weights = np.concatenate(
        [np.full(1, constants.mean**2)]
        + [np.full(3 * 4**k, c**2) for k, c in enumerate(constants.scales[1:])]
    )
    found = (haar.T * weights) @ haar
    return found * (side**2 / np.trace(found))


def haar_matrix(side: int) -> np.ndarray:
    """Rows: Haar's orthonormal functions on side x side pixels, coarsest first, the constant before
    all; (d, d)."""
    pixels = torch.eye(side**2, dtype=torch.float64).reshape(-1, 1, side, side)
    return torch.cat(
        [v.flatten(1) for v in HaarWavelet(int(math.log2(side))).analyse(pixels)], dim=1
    ).T.numpy()


# ---------------------------------------------------------------- estimators from clean data


def second_moments(x: np.ndarray) -> np.ndarray:
    """mean(x x') over the images, (..., n, d) -> (..., d, d): all that the estimators below need of
    the data."""
    return np.swapaxes(x, -1, -2) @ x / x.shape[-2]


def draw_moments(
    field: GridField,
    theta: Sequence[float],
    sizes: Sequence[int],
    repeats: int,
    random: np.random.Generator,
) -> np.ndarray:
    """`second_moments` of fresh images for every sample size and repeat, (sizes, repeats, d, d)."""
    return np.array(
        [[second_moments(field.draw(theta, (n,), random)) for _ in range(repeats)] for n in sizes]
    )


def score_matching(field: GridField, moments: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """Minimiser of (1), (..., 2), for second moments (..., d, d) and A (d, d); closed form."""
    design = np.stack([[a @ metric @ b for b in field.bases] for a in field.bases])  # (2, 2, d, d)
    h = np.einsum("ijab,...ab->...ij", design, moments)
    g = np.einsum("iaa->i", field.bases @ metric)
    return np.linalg.solve(h, np.broadcast_to(g[:, None], (*h.shape[:-1], 1)))[..., 0]


def maximum_likelihood(field: GridField, moments: np.ndarray, steps: int = 60) -> np.ndarray:
    """Maximum likelihood estimates, (..., 2), by Newton's method with steps cut to a half where the
    precision would not be positive."""
    energy = np.einsum("ak,...ab,bk->...k", field.vectors, moments, field.vectors, optimize=True)
    theta = np.stack([1 / energy.mean(-1), np.zeros(energy.shape[:-1])], axis=-1)
    for _ in range(steps):
        q = field.precisions(theta)
        gradient = (1 / q - energy) @ field.spectra.T / 2
        information = np.einsum("ik,...k,jk->...ij", field.spectra, q**-2 / 2, field.spectra)
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        size = np.ones(theta.shape[:-1])
        while (bad := ((theta + size[..., None] * step) @ field.spectra <= 0.1 * q).any(-1)).any():
            size[bad] /= 2
        theta = theta + size[..., None] * step
        if np.abs(step).max() < 1e-10 * np.abs(theta).max():
            return theta
    raise RuntimeError(f"maximum likelihood did not settle within {steps} steps")


def score_matching_covariance(
    field: GridField, theta: Sequence[float], metric: np.ndarray
) -> np.ndarray:
    """Limit covariance of sqrt(n) (theta_hat - theta) for `score_matching`, (2, 2): the sandwich
    H^-1 V H^-1."""
    sigma, precision = field.covariance(theta), field.matrix(field.precisions(theta))
    h = np.array([[np.trace(a @ metric @ b @ sigma) for b in field.bases] for a in field.bases])
    halves = [a @ metric @ precision for a in field.bases]
    m = [(half + half.T) / 2 @ sigma for half in halves]
    v = np.array([[2 * np.trace(a @ b) for b in m] for a in m])
    return np.linalg.solve(h, np.linalg.solve(h, v).T)


def fisher_error(
    theta_hat: np.ndarray, theta: Sequence[float], information: np.ndarray
) -> np.ndarray:
    """(theta_hat - theta)' I (theta_hat - theta), (...,): squared error in units of what one image
    tells; p / n is the least in the limit, p parameters."""
    off = theta_hat - np.asarray(theta)
    return np.einsum("...i,ij,...j->...", off, information, off)


def efficiency(covariance: np.ndarray, information: np.ndarray) -> float:
    """Share of the images that maximum likelihood would need for the same mean `fisher_error`: p /
    tr(I covariance), at most 1 (Cramer-Rao)."""
    return len(information) / float(np.trace(information @ covariance))


def rate(sizes: Sequence[int], squared: np.ndarray) -> tuple[float, float]:
    """Slope of the log root mean square error against log sample size, and its standard error, from
    squared errors (sizes, repeats).

    Weighted least squares; the log of each mean has the standard error of the mean over the mean.
    Repeats and sizes must be independent.
    """
    mean, error = squared.mean(axis=1), squared.std(axis=1, ddof=1) / math.sqrt(squared.shape[1])
    x, y, weight = np.log(sizes), np.log(mean) / 2, (2 * mean / error) ** 2
    x = x - np.average(x, weights=weight)
    spread = (weight * x**2).sum()
    return float((weight * x * y).sum() / spread), float(spread**-0.5)


# ---------------------------------------------------------------- estimators by denoising


class Loss(Protocol):
    """A loss of residuals r (n, d): its gradient, and G = E g g', B = E dg/dr for r ~ N(0, S)."""

    def gradient(self, r: np.ndarray) -> np.ndarray: ...

    def moments(self, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class Squares(NamedTuple):
    """1/2 r' A r."""

    metric: np.ndarray

    def gradient(self, r: np.ndarray) -> np.ndarray:
        return r @ self.metric

    def moments(self, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.metric @ covariance @ self.metric, self.metric


class Wavelet(NamedTuple):
    """|K r|_1, K (m, d); `wavelet_loss` makes it Haar's wavelet distance."""

    rows: np.ndarray

    def gradient(self, r: np.ndarray) -> np.ndarray:
        return np.sign(r @ self.rows.T) @ self.rows

    def moments(self, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = self.rows @ covariance @ self.rows.T
        sd = np.sqrt(np.diag(y))
        # E sign sign' of a Gaussian pair
        signs = 2 / math.pi * np.arcsin(np.clip(y / np.outer(sd, sd), -1, 1))
        return self.rows.T @ signs @ self.rows, (
            self.rows.T * (math.sqrt(2 / math.pi) / sd)
        ) @ self.rows


class Exact(NamedTuple):
    """W(r), the exact Euclidean distance on side x side pixels with mass created at `create_cost`;
    its gradient is the best potential. Needs POT.

    G and B are means over `draws` residuals of one seed: other seeds tell how good they are.
    """

    side: int
    create_cost: float
    draws: int = 4000
    seed: int = 0

    def gradient(self, r: np.ndarray) -> np.ndarray:
        images = r.reshape(-1, self.side, self.side)
        return np.stack(
            [potential(f, np.zeros_like(f), create_cost=self.create_cost) for f in images]
        ).reshape(r.shape)

    def moments(self, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(values)
        white = np.random.default_rng(self.seed).normal(size=(self.draws, len(values)))
        g = self.gradient(white @ root.T)
        b = g.T @ (white @ (vectors / np.sqrt(values)).T) / self.draws
        return g.T @ g / self.draws, (b + b.T) / 2


def wavelet_loss(side: int) -> Wavelet:
    """Haar's wavelet distance with mass created at half the side: `wavelet_emd(r, c0=4 lambda /
    side)` of an image r."""
    levels = int(math.log2(side))
    weights = [np.full(1, 2.0 * side**2)] + [
        np.full(3 * 4**k, 4.0 ** (levels - k)) for k in range(levels)
    ]
    return Wavelet(np.concatenate(weights)[:, None] * haar_matrix(side))


class Noised(NamedTuple):
    """Images under noise, (n, d) each, and the noise: what denoising estimators see; alpha^2 +
    sigma^2 = 1."""

    images: np.ndarray
    eps: np.ndarray
    sigma: float


def add_noise(x: np.ndarray, sigma: float, random: np.random.Generator) -> Noised:
    """One draw of noise an image."""
    eps = random.normal(size=x.shape)
    return Noised(math.sqrt(1 - sigma**2) * x + sigma * eps, eps, sigma)


def _noisy(field: GridField, theta: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the noisy images' precision (d,) and of its derivatives (2, d)."""
    q = field.precisions(theta)
    alpha2 = 1 - sigma**2
    return q / (alpha2 + sigma**2 * q), field.spectra * alpha2 / (alpha2 + sigma**2 * q) ** 2


def gradient_moments(
    field: GridField, theta: np.ndarray, sigma: float, loss: Loss
) -> tuple[np.ndarray, np.ndarray]:
    """H and V of (2), (2, 2) each: the slope in theta of the mean gradient of loss(eps -
    m_theta(x_noisy)), and the covariance of one image's gradient."""
    q, d = _noisy(field, theta, sigma)
    outer, curvature = loss.moments(residual_covariance(field, theta, sigma))

    # all but `middle` is diagonal in the Laplacian's basis
    def between(middle: np.ndarray) -> np.ndarray:
        inner = np.einsum("ak,ab,bk->k", field.vectors, middle, field.vectors, optimize=True)
        return sigma**2 * np.einsum("ik,k,jk->ij", d, inner / q, d)

    return between(curvature), between(outer)


def denoising(
    field: GridField,
    noised: Noised,
    loss: Loss,
    start: Sequence[float] | None = None,
    steps: int = 16,
) -> np.ndarray:
    """Where the gradient of mean loss(eps - m_theta(x)) vanishes, (2,), by Newton's method with the
    curvature expected at `start`.

    By default it starts from maximum likelihood on the clean images (the noise is known); where it
    ends does not depend on that. Losses with corners have gradients that jump, so they vanish to a
    few jumps only: the smallest one met is taken, steps getting shorter.

    Raises:
        RuntimeError: where the square of the smallest gradient is above a twentieth of the square
            of the gradient's own standard error, which would add as much to the estimate's
            variance.
    """
    if start is None:
        clean = (noised.images - noised.sigma * noised.eps) / math.sqrt(1 - noised.sigma**2)
        theta = np.array(maximum_likelihood(field, second_moments(clean)), dtype=float)
    else:
        theta = np.array(start, dtype=float)
    rotated = noised.images @ field.vectors
    curvature, variance = gradient_moments(field, theta, noised.sigma, loss)
    best, least = theta, math.inf
    for index in range(steps):
        q, d = _noisy(field, theta, noised.sigma)
        g = (
            loss.gradient(noised.eps - noised.sigma * (rotated * q) @ field.vectors.T)
            @ field.vectors
        )
        gradient = -noised.sigma * np.einsum("nk,nk,ik->i", g, rotated, d) / len(g)
        # 1 is the gradient's standard error
        size = float(gradient @ np.linalg.solve(variance, gradient)) * len(g) / len(gradient)
        if size < least:
            best, least = theta, size
        if least < 1e-3:
            break
        step = np.linalg.solve(curvature, gradient) * 0.75 ** max(0, index - 3)
        while ((theta - step) @ field.spectra <= 0.3 * theta @ field.spectra).any():
            step = step / 2
        theta = theta - step
    if least > 0.05:
        raise RuntimeError(
            f"denoising did not settle within {steps} steps from {np.asarray(start).tolist()}: "
            f"take more images, or another start"
        )
    return best


def residual_covariance(field: GridField, theta: np.ndarray, sigma: float) -> np.ndarray:
    """S of r = eps - E[eps | x_noisy], (d, d)."""
    return field.matrix(1 - sigma**2 * _noisy(field, theta, sigma)[0])


def denoising_covariance(
    field: GridField, theta: Sequence[float], sigma: float, loss: Loss
) -> np.ndarray:
    """Limit covariance of sqrt(n) (theta_hat - theta) for `denoising`, (2, 2): the sandwich of
    (2)."""
    h, v = gradient_moments(field, np.asarray(theta, dtype=float), sigma, loss)
    return np.linalg.solve(h, np.linalg.solve(h, v).T)


def averaged_denoising(
    field: GridField, moments: np.ndarray, sigma: float, metric: np.ndarray, steps: int = 30
) -> np.ndarray:
    """`denoising` by squares with the noise averaged out, as after endlessly many draws an image;
    (2,) for second moments (d, d) of the clean images.

    The loss is then 1/2 tr(Q A Q T) - tr(A Q) up to a constant, Q the noisy precision and T =
    alpha^2 moments + sigma^2 I: (1) for the noisy family.
    """
    theta = maximum_likelihood(field, moments)
    noisy_moments, a = (
        field.vectors.T @ m @ field.vectors
        for m in ((1 - sigma**2) * moments + sigma**2 * np.eye(field.dims), metric)
    )
    for _ in range(steps):
        q, d = _noisy(field, theta, sigma)
        gradient = np.einsum("ik,kl,l,lk->i", d, a, q, noisy_moments) - d @ np.diag(a)
        curvature = np.einsum("ik,kl,jl,lk->ij", d, a, d, noisy_moments)
        step = np.linalg.solve(curvature, gradient)
        while ((theta - step) @ field.spectra <= 0.3 * theta @ field.spectra).any():
            step = step / 2
        theta = theta - step
        if np.abs(step).max() < 1e-9 * np.abs(theta).max():
            return theta
    raise RuntimeError(f"denoising did not settle within {steps} steps: take more images")


def averaged_denoising_covariance(
    field: GridField, theta: Sequence[float], sigma: float, metric: np.ndarray
) -> np.ndarray:
    """Limit covariance of sqrt(n) (theta_hat - theta) for `averaged_denoising`, (2, 2).

    H_ij = tr(D_i A D_j Sigma_noisy), V_ij = 2 alpha^4 tr(M_i Sigma M_j Sigma), M_i the symmetric
    part of D_i A Q, Q and D_i noisy.
    """
    values = np.asarray(theta, dtype=float)
    (q, d), a, clean = (
        _noisy(field, values, sigma),
        field.vectors.T @ metric @ field.vectors,
        1 / field.precisions(values),
    )
    h = np.einsum("ik,kl,jl,lk->ij", d, a, d, np.diag(1 / q))
    halves = d[:, :, None] * a * q
    m = (halves + np.swapaxes(halves, 1, 2)) / 2 * clean
    v = 2 * (1 - sigma**2) ** 2 * np.einsum("ikl,jlk->ij", m, m)
    return np.linalg.solve(h, np.linalg.solve(h, v).T)
