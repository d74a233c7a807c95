"""An exponential family on two pixels in which denoising by the earth mover's distance is *not
consistent* (the counterexample to `emd_estimator`).

On two pixels whose sum is zero the distance is an absolute value, and the best denoiser the
posterior's median, where the model offers its mean. For a skewed posterior they differ, and the
estimator converges to the theta at which the difference, weighted by how much each posterior moves
with theta, averages out: in general not the truth. It can be by chance or by symmetry: the bias has
    either sign, so it crosses zero, and at theta = 0 of a mixture that is its own mirror image it
    is zero although the posteriors are skewed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr


class TiltedMixture:
    """p(d; theta) proportional to exp(theta d) b(d), b a mixture of two Gaussians: an exponential
    family with a skewed posterior under noise.

    d is the Haar detail of two pixels in a row, (x_1 - x_2) / sqrt(2), with x_1 + x_2 = 0. An error
    f of its score is a multiple of (1, -1), so its earth mover's distance is |f| / sqrt(2), f the
    error in d: minimising W is least absolute deviations. Tilting leaves a mixture: everything is
        in closed form.

    Args:
        weights, means: of the components at theta = 0, (2,).
        sd: of both.
    """

    def __init__(
        self,
        weights: Sequence[float] = (0.8, 0.2),
        means: Sequence[float] = (-0.5, 1.5),
        sd: float = 0.6,
    ):
        self.log_weights, self.means, self.sd = np.log(weights), np.array(means, dtype=float), sd

    def _components(self, theta: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Weights and means of the components, (..., 2)."""
        theta = np.asarray(theta, dtype=float)[..., None]
        return _softmax(self.log_weights + theta * self.means), self.means + theta * self.sd**2

    def moments(self, theta: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of d; the variance is the Fisher information of theta."""
        w, m = self._components(theta)
        mean = (w * m).sum(-1)
        return mean, (w * (m - mean[..., None]) ** 2).sum(-1) + self.sd**2

    def draw(self, theta: float, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        w, m = self._components(theta)
        return m[(random.uniform(size=shape) > w[0]).astype(int)] + self.sd * random.normal(
            size=shape
        )

    def base_score(self, d: np.ndarray) -> np.ndarray:
        """(log b)'; the family's score is that plus theta."""
        off = d[..., None] - self.means
        return -(_softmax(self.log_weights - off**2 / (2 * self.sd**2)) * off).sum(-1) / self.sd**2

    def posterior(
        self, noisy: np.ndarray, theta: np.ndarray | float, sigma: float
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Of eps given alpha d + sigma eps: weights and means of two Gaussians, (..., 2), and their
        standard deviation. theta broadcasts against noisy."""
        w, m = self._components(theta)
        alpha = math.sqrt(1 - sigma**2)
        total = (alpha * self.sd) ** 2 + sigma**2
        off = noisy[..., None] - alpha * m
        return (
            _softmax(np.log(w) - off**2 / (2 * total)),
            sigma * off / total,
            alpha * self.sd / math.sqrt(total),
        )

    def eps_mean(
        self, noisy: np.ndarray, theta: np.ndarray | float, sigma: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """m_theta = E[eps | noisy] and its derivative in theta, - sigma / alpha Var(eps | noisy):
        the tilt moves d's mean by d's variance."""
        w, m, sd = self.posterior(noisy, theta, sigma)
        mean = (w * m).sum(-1)
        return mean, -sigma / math.sqrt(1 - sigma**2) * (
            (w * (m - mean[..., None]) ** 2).sum(-1) + sd**2
        )

    # ---- estimators; d, noisy, eps (..., n) -> (...)

    def maximum_likelihood(self, d: np.ndarray) -> np.ndarray:
        return _root(lambda theta: self.moments(theta)[0] - d.mean(-1), d.shape[:-1])

    def score_matching(self, d: np.ndarray) -> np.ndarray:
        """Minimiser of mean[(base_score + theta)^2 / 2 + ...]: closed form."""
        return -self.base_score(d).mean(-1)

    def denoising(self, noisy: np.ndarray, eps: np.ndarray, sigma: float, power: int) -> np.ndarray:
        """Minimiser of mean |eps - m_theta(noisy)|^power, power 2 (squares) or 1 (the earth mover's
        distance)."""

        def gradient(theta: np.ndarray) -> np.ndarray:
            mean, slope = self.eps_mean(noisy, theta[..., None], sigma)
            return ((np.sign(mean - eps) if power == 1 else mean - eps) * slope).mean(-1)

        return _root(gradient, noisy.shape[:-1])

    def limit(self, theta: float, sigma: float) -> float:
        """What `denoising` with power 1 converges to: where E[(2 F(m) - 1) m'] = 0, F the
        posterior's distribution function at `theta`; by quadrature."""
        noisy = np.linspace(-12, 12, 6001)
        w, m, sd = self.posterior(noisy, theta, sigma)
        weights, means = self._components(theta)
        alpha = math.sqrt(1 - sigma**2)
        total = (alpha * self.sd) ** 2 + sigma**2
        density = (weights * np.exp(-((noisy[:, None] - alpha * means) ** 2) / (2 * total))).sum(-1)

        def gradient(candidate: float) -> float:
            mean, slope = self.eps_mean(noisy, candidate, sigma)
            return float(
                (density * (2 * (w * ndtr((mean[:, None] - m) / sd)).sum(-1) - 1) * slope).sum()
            )

        return brentq(gradient, theta - 2, theta + 2, xtol=1e-13)

    def small_noise_bias(self, theta: float) -> float:
        """Limit of (limit(theta, sigma) - theta) / sigma^2 as sigma -> 0: - E[third derivative of
        log p] / 6.

        A posterior's mean lies above its median by kappa_3 / (6 kappa_2) to first order in its
        third cumulant. For eps given the noisy d, kappa_2 = 1, dm / dtheta = -sigma, and kappa_3 is
        -sigma^3 times that derivative. To first order, the root of (2F(m) - 1) dm / dtheta = 0 in
        the mean is E[kappa_3 / 6 * dm / dtheta] divided by -E[(dm / dtheta)^2].
        """
        d, step = np.linspace(-12, 12, 24001, retstep=True)
        weights, means = self._components(theta)
        density = (weights * np.exp(-((d[:, None] - means) ** 2) / (2 * self.sd**2))).sum(-1)
        third = np.gradient(np.gradient(self.base_score(d), step), step)
        return -float((density * third).sum() / density.sum()) / 6


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _root(
    increasing: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    reach: float = 4.0,
    steps: int = 24,
) -> np.ndarray:
    """Where functions of theta, one an entry of `shape`, change sign in [-reach, reach]; by
    bisection, to 5e-7."""
    low, high = np.full(shape, -reach), np.full(shape, reach)
    for _ in range(steps):
        middle = (low + high) / 2
        above = increasing(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2
