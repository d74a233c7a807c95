"""Estimators that minimise transport: identities, sandwiches against simulation, and the
counterexample against quadrature."""

import math

import numpy as np
import pytest
from scipy.special import ndtr

from pcdm_lib.experiments.studies import emd_estimator
from pcdm_lib.experiments.studies.tilted_mixture import TiltedMixture
from pcdm_lib.transport import exact_emd, scale_constants, wavelet_emd

THETA = np.array([0.2, 1.0])


@pytest.fixture
def field():
    return emd_estimator.GridField(4)


def close(values: np.ndarray, expected: float, errors: float = 4) -> bool:
    """Whether a mean of independent values is within so many standard errors of what is
    expected."""
    return abs(np.mean(values) - expected) < errors * np.std(values, ddof=1) / math.sqrt(
        len(values)
    )


# ---------------------------------------------------------------- the field


def test_laplacian_counts_differences_of_neighbours(field):
    x = np.random.default_rng(0).normal(size=(4, 4))
    differences = (np.diff(x, axis=0) ** 2).sum() + (np.diff(x, axis=1) ** 2).sum()
    assert x.ravel() @ field.laplacian @ x.ravel() == pytest.approx(differences)
    assert np.allclose(field.matrix(field.values), field.laplacian) and field.values.max() < 8
    assert np.allclose(field.covariance(THETA) @ field.matrix(field.precisions(THETA)), np.eye(16))


def test_draws_have_the_covariance(field):
    x = field.draw(THETA, (20000,), np.random.default_rng(0))
    assert np.allclose(emd_estimator.second_moments(x), field.covariance(THETA), atol=0.06)


def test_fisher_information_is_the_curvature_of_the_likelihood(field):
    """Of E log p = (sum log q - tr Q Sigma) / 2, twice differentiated numerically."""

    def loglikelihood(theta):
        q = field.precisions(theta)
        return (np.log(q).sum() - (q / field.precisions(THETA)).sum()) / 2

    h = 1e-4
    for i in range(2):
        for k in range(2):
            a, b = h * np.eye(2)[i], h * np.eye(2)[k]
            second = (
                loglikelihood(THETA + a + b)
                - loglikelihood(THETA + a - b)
                - loglikelihood(THETA - a + b)
                + loglikelihood(THETA - a - b)
            ) / (4 * h**2)
            assert field.fisher_information(THETA)[i, k] == pytest.approx(-second, rel=1e-4)


def test_bad_parameters_are_told(field):
    with pytest.raises(ValueError, match="positive precision"):
        field.precisions((1.0, -0.2))
    with pytest.raises(ValueError, match="positive precision"):
        field.draw((0.0, 1.0), (1,), np.random.default_rng(0))


# ---------------------------------------------------------------- weights


def test_transport_weights_quadruple_and_become_plain():
    haar = emd_estimator.haar_matrix(8)
    assert np.allclose(haar @ haar.T, np.eye(64))
    weights = np.diag(haar @ emd_estimator.transport_weights(8) @ haar.T)
    assert weights.mean() == pytest.approx(1)
    assert np.allclose(weights[[1, 4, 16]] / weights[16], [16, 4, 1])
    assert np.allclose(emd_estimator.transport_weights(8, create_cost=0.7), np.eye(64))
    capped = np.diag(haar @ emd_estimator.transport_weights(8, create_cost=1.5) @ haar.T)
    assert np.allclose(capped[[0, 1, 4]] / capped[16], [4.5, 4.5, 4])  # lambda^2 over 1/2


@pytest.mark.parametrize("price", [0.5, 1.2, 2.0])
def test_weighted_squares_bound_the_distance(price):
    constants, haar = scale_constants((4, 4), 2, create_cost=price), emd_estimator.haar_matrix(4)
    # what the mean weight was divided by
    scale = (constants.mean**2 + (constants.scales[1:] ** 2 * [3, 12]).sum()) / 16
    for seed in range(20):
        f = (
            np.random.default_rng(seed).normal(size=16)
            @ (haar.T * np.random.default_rng(seed + 99).exponential(size=16))
            @ haar
        )
        distance = exact_emd(f.reshape(4, 4), np.zeros((4, 4)), create_cost=price, solver="lp")
        assert distance**2 <= 3 * scale * (f @ emd_estimator.transport_weights(4, price) @ f) * (
            1 + 1e-9
        )


# ---------------------------------------------------------------- clean data


def test_integration_by_parts(field):
    """The loss that needs no true score differs from the divergence by a constant, and its minimum
    over a sample is the estimate."""
    a, sigma, q0 = (
        emd_estimator.transport_weights(4),
        field.covariance(THETA),
        field.matrix(field.precisions(THETA)),
    )
    gaps = []
    for theta in [(0.1, 0.5), (1.0, 0.0), (0.5, 2.0), (1.0, -0.1)]:
        q = field.matrix(field.precisions(theta))
        gaps.append(
            np.trace((q - q0) @ a @ (q - q0) @ sigma) / 2
            - np.trace(q @ a @ q @ sigma) / 2
            + np.trace(a @ q)
        )
    assert np.ptp(gaps) < 1e-9

    moments = emd_estimator.second_moments(field.draw(THETA, (100,), np.random.default_rng(0)))

    def loss(theta):
        q = theta[0] * field.bases[0] + theta[1] * field.bases[1]
        return np.trace(q @ a @ q @ moments) / 2 - np.trace(a @ q)

    found, h = emd_estimator.score_matching(field, moments, a), 1e-4
    for axis in np.eye(2):
        assert loss(found + h * axis) - loss(found - h * axis) == pytest.approx(0, abs=1e-9)
        assert loss(found + h * axis) > loss(found)


@pytest.mark.parametrize("theta", [(0.2, 1.0), (1.0, 0.0), (1.0, -0.1), (0.01, 1.0)])
def test_true_moments_give_the_truth(field, theta):
    sigma = field.covariance(theta)
    assert np.allclose(emd_estimator.maximum_likelihood(field, sigma), theta, rtol=1e-6, atol=1e-9)
    for a in (
        np.eye(16),
        emd_estimator.transport_weights(4),
        emd_estimator.transport_weights(4, 1.0),
        sigma,
    ):
        assert np.allclose(emd_estimator.score_matching(field, sigma, a), theta)
        assert (
            emd_estimator.efficiency(
                emd_estimator.score_matching_covariance(field, theta, a),
                field.fisher_information(theta),
            )
            <= 1 + 1e-9
        )
    # efficient at A = Sigma
    assert np.allclose(
        emd_estimator.score_matching_covariance(field, theta, sigma),
        np.linalg.inv(field.fisher_information(theta)),
    )
    assert np.allclose(
        emd_estimator.averaged_denoising(field, sigma, 0.5, emd_estimator.transport_weights(4)),
        theta,
        rtol=1e-6,
        atol=1e-7,
    )


def covariance_by_differences(estimator, sigma):
    """Limit covariance of sqrt(n) estimator(second moments), (2, 2), without its sandwich: the
    delta method, with derivatives by differences.

    With G_i the symmetric matrix of derivatives of the i-th parameter it is 2 tr(G_i Sigma G_j
    Sigma), the moments' covariance being Isserlis'. `estimator` takes (m, d, d) to (m, 2).
    """
    rows, columns = np.tril_indices(len(sigma))
    each, h = np.arange(len(rows)), 1e-4
    steps = np.zeros((len(rows), *sigma.shape))
    steps[each, rows, columns] += h / 2
    steps[each, columns, rows] += h / 2
    slopes = (estimator(sigma + steps) - estimator(sigma - steps)) / (2 * h)
    g = np.zeros((2, *sigma.shape))
    g[:, rows, columns] = g[:, columns, rows] = slopes.T
    return 2 * np.einsum("iab,bc,jcd,da->ij", g, sigma, g, sigma, optimize=True)


def test_sandwiches_are_the_delta_method(field):
    """Those of clean data and of averaged noise, at a point where nothing is symmetric between the
    two parameters."""
    sigma = field.covariance(THETA)
    assert np.allclose(
        covariance_by_differences(lambda m: emd_estimator.maximum_likelihood(field, m), sigma),
        np.linalg.inv(field.fisher_information(THETA)),
        rtol=1e-4,
    )
    for a in (
        np.eye(16),
        emd_estimator.transport_weights(4),
        emd_estimator.transport_weights(4, 1.0),
        sigma,
    ):
        found = covariance_by_differences(
            lambda m, a=a: emd_estimator.score_matching(field, m, a), sigma
        )
        assert np.allclose(
            found, emd_estimator.score_matching_covariance(field, THETA, a), rtol=1e-4
        )
    for noise, a in ((0.2, np.eye(16)), (0.7, emd_estimator.transport_weights(4))):
        found = covariance_by_differences(
            lambda m, a=a, noise=noise: np.array(
                [emd_estimator.averaged_denoising(field, one, noise, a) for one in m]
            ),
            sigma,
        )
        assert np.allclose(
            found, emd_estimator.averaged_denoising_covariance(field, THETA, noise, a), rtol=1e-3
        )


def test_covariance_weights_are_likelihood_in_the_limit_only():
    """At A = Sigma the estimates differ from maximum likelihood's, by less and less of their own
    error."""
    field, random = emd_estimator.GridField(8), np.random.default_rng(0)
    information, apart = field.fisher_information(THETA), []
    for moments in emd_estimator.draw_moments(field, THETA, (64, 4096), 100, random):
        likely = emd_estimator.maximum_likelihood(field, moments)
        differences = emd_estimator.fisher_error(
            emd_estimator.score_matching(field, moments, field.covariance(THETA)),
            likely,
            information,
        )
        apart.append(
            math.sqrt(
                differences.mean() / emd_estimator.fisher_error(likely, THETA, information).mean()
            )
        )
    assert 0.02 < apart[0] < 0.5 and apart[1] < apart[0] / 4  # as n^-1/2, that is by 8


def test_plain_is_efficient_on_white_noise_and_transport_on_smooth_fields():
    field = emd_estimator.GridField(8)

    def share(c, a):
        return emd_estimator.efficiency(
            emd_estimator.score_matching_covariance(field, (1, c), a),
            field.fisher_information((1, c)),
        )

    plain, transport = np.eye(64), emd_estimator.transport_weights(8)
    assert share(0, plain) == pytest.approx(1) and share(0, transport) < 0.5
    assert (
        share(50, plain) < 0.2
        and share(50, transport) > 0.6
        and share(50, emd_estimator.transport_weights(8, 50**0.5)) > 0.75
    )


@pytest.mark.parametrize("weights", ["plain", "transport", "maximum likelihood"])
def test_sandwich_is_what_simulation_gives(field, weights):
    information, n = field.fisher_information(THETA), 1000
    moments = emd_estimator.draw_moments(field, THETA, (n,), 400, np.random.default_rng(0))[0]
    if weights == "maximum likelihood":
        hats, covariance = (
            emd_estimator.maximum_likelihood(field, moments),
            np.linalg.inv(information),
        )
    else:
        a = np.eye(16) if weights == "plain" else emd_estimator.transport_weights(4)
        hats, covariance = (
            emd_estimator.score_matching(field, moments, a),
            emd_estimator.score_matching_covariance(field, THETA, a),
        )
    assert hats.shape == (400, 2)
    assert close(
        n * emd_estimator.fisher_error(hats, THETA, information), np.trace(information @ covariance)
    )
    assert np.allclose(n * np.cov(hats.T), covariance, rtol=0.3)


def test_maximum_likelihood_survives_hard_data(field):
    """One image, and one with next to nothing in it; the likelihood's slope is zero there."""
    for scale in (1.0, 1e-3):
        moments = emd_estimator.second_moments(
            scale * field.draw(THETA, (3,), np.random.default_rng(1))
        )
        theta = emd_estimator.maximum_likelihood(field, moments)
        energy = np.einsum("ak,ab,bk->k", field.vectors, moments, field.vectors)
        assert np.allclose(
            (1 / field.precisions(theta)) @ field.spectra.T, energy @ field.spectra.T, rtol=1e-6
        )


def test_rate_of_a_known_law():
    sizes, random = (100, 400, 1600), np.random.default_rng(0)
    squared = np.stack([random.chisquare(2, size=500) / n for n in sizes])
    slope, error = emd_estimator.rate(sizes, squared)
    assert abs(slope + 0.5) < 4 * error and 0.005 < error < 0.02
    exact = np.stack([np.array([0.9, 1.1]) / n**1.5 for n in sizes])
    assert emd_estimator.rate(sizes, exact)[0] == pytest.approx(-0.75)


def test_rate_weighs_sizes_by_how_well_they_are_measured():
    """Against polyfit, at sizes whose errors differ much and whose points lie on no line."""
    sizes, random = (100, 200, 800, 3200), np.random.default_rng(0)
    squared = np.stack(
        [random.gamma(shape, 1 / n, size=40) for n, shape in zip(sizes, (5.0, 0.3, 20.0, 2.0))]
    )
    # of the root mean square
    relative = squared.std(axis=1, ddof=1) / math.sqrt(40) / squared.mean(axis=1) / 2
    fitted, covariance = np.polyfit(
        np.log(sizes), np.log(squared.mean(axis=1)) / 2, 1, w=1 / relative, cov="unscaled"
    )
    assert emd_estimator.rate(sizes, squared) == pytest.approx(
        (fitted[0], math.sqrt(covariance[0, 0]))
    )
    assert abs(fitted[0] - np.polyfit(np.log(sizes), np.log(squared.mean(axis=1)) / 2, 1)[0]) > 0.05


# ---------------------------------------------------------------- denoising


def test_wavelet_loss_is_the_wavelet_distance():
    r = np.random.default_rng(0).normal(size=(5, 64))
    loss = emd_estimator.wavelet_loss(8)
    assert np.allclose(
        np.abs(r @ loss.rows.T).sum(1), wavelet_emd(r.reshape(-1, 8, 8), c0=4 * 4.0 / 8)
    )
    assert np.allclose((loss.gradient(r) * r).sum(1), np.abs(r @ loss.rows.T).sum(1))  # Euler


def test_exact_loss_has_the_distance_for_its_gradient():
    pytest.importorskip("ot")
    r = np.random.default_rng(0).normal(size=(5, 16))
    values = exact_emd(r.reshape(-1, 4, 4), np.zeros((5, 4, 4)), create_cost=2.0)
    assert np.allclose((emd_estimator.Exact(4, 2.0).gradient(r) * r).sum(1), values)


@pytest.mark.parametrize("kind", ["squares", "wavelet", "exact"])
def test_moments_of_gradients(field, kind):
    """G and B in closed form (or from the loss's own draws) against draws of the test; B by its
    definition, differences of the mean gradient."""
    if kind == "exact":
        pytest.importorskip("ot")
    loss = {
        "squares": emd_estimator.Squares(emd_estimator.transport_weights(4)),
        "wavelet": emd_estimator.wavelet_loss(4),
        "exact": emd_estimator.Exact(4, 2.0),
    }[kind]
    covariance, draws = (
        emd_estimator.residual_covariance(field, THETA, 0.6),
        3000 if kind == "exact" else 200_000,
    )
    outer, curvature = loss.moments(covariance)
    r = np.random.default_rng(5).normal(size=(draws, 16)) @ np.linalg.cholesky(covariance).T
    g = loss.gradient(r)
    assert np.allclose(
        g.T @ g / draws,
        outer,
        atol=0.02 * np.abs(outer).max() if kind != "exact" else 0.08 * np.abs(outer).max(),
    )
    # a coarse direction: E g(r + h e) - E g(r - h e) = 2 h B e
    along = emd_estimator.haar_matrix(4)[1]
    h = 0.3
    change = (loss.gradient(r + h * along) - loss.gradient(r - h * along)) @ along / (2 * h)
    assert change.mean() == pytest.approx(along @ curvature @ along, rel=0.1)


def residuals(field, theta, images, eps, sigma):
    """eps - E_theta[eps | noisy image], (n, d), by dense matrices: regression of one Gaussian on
    another."""
    return eps - images @ np.linalg.solve(
        (1 - sigma**2) * field.covariance(theta) + sigma**2 * np.eye(field.dims),
        sigma * np.eye(field.dims),
    )


LOSSES = {
    "plain": emd_estimator.Squares(np.eye(16)),
    "transport": emd_estimator.Squares(emd_estimator.transport_weights(4)),
    "wavelet": emd_estimator.wavelet_loss(4),
}


@pytest.mark.parametrize("sigma", [0.3, 0.6])
@pytest.mark.parametrize("kind", LOSSES)
def test_slope_of_the_mean_gradient(field, kind, sigma):
    """H against second differences of the expected loss, which for Gaussian residuals has a closed
    form; no draws."""
    clean, loss = field.covariance(THETA), LOSSES[kind]
    noisy = (1 - sigma**2) * clean + sigma**2 * np.eye(16)

    def expected(theta):
        q = np.linalg.inv((1 - sigma**2) * field.covariance(theta) + sigma**2 * np.eye(16))
        # eps and the noisy image have covariance sigma I
        covariance = np.eye(16) - 2 * sigma**2 * q + sigma**2 * q @ noisy @ q
        if kind == "wavelet":
            return (
                math.sqrt(2 / math.pi)
                * np.sqrt(np.einsum("ka,ab,kb->k", loss.rows, covariance, loss.rows)).sum()
            )
        return np.trace(loss.metric @ covariance) / 2

    h = np.diag([2e-4, 1e-3])  # a step of each parameter
    found = np.array(
        [
            [
                expected(THETA + a + b)
                - expected(THETA + a - b)
                - expected(THETA - a + b)
                + expected(THETA - a - b)
                for a in h
            ]
            for b in h
        ]
    )
    assert np.allclose(
        found / (4 * np.outer(h.sum(0), h.sum(0))),
        emd_estimator.gradient_moments(field, THETA, sigma, loss)[0],
        rtol=1e-3,
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_covariance_of_one_images_gradient(field, kind):
    """V against 300,000 gradients in theta, whose residuals are differentiated numerically: mean
    zero, and the covariance to 3 %; then the sandwich."""
    random, n, sigma = np.random.default_rng(7), 300_000, 0.6
    data = emd_estimator.add_noise(field.draw(THETA, (n,), random), sigma, random)
    g = LOSSES[kind].gradient(residuals(field, THETA, *data))
    slopes = [
        residuals(field, THETA + step, *data) - residuals(field, THETA - step, *data)
        for step in np.diag([1e-4, 1e-4])
    ]
    each = np.stack([(g * slope).sum(1) / 2e-4 for slope in slopes])  # (2, n)
    h, v = emd_estimator.gradient_moments(field, THETA, sigma, LOSSES[kind])
    root = np.linalg.inv(np.linalg.cholesky(v))
    assert np.abs(root @ each.mean(1)).max() < 4 / math.sqrt(n)
    assert np.allclose(root @ np.cov(each) @ root.T, np.eye(2), atol=0.03)
    assert np.allclose(
        emd_estimator.denoising_covariance(field, THETA, sigma, LOSSES[kind]),
        np.linalg.inv(h) @ v @ np.linalg.inv(h),
    )


@pytest.mark.parametrize(
    "kind, n, repeats",
    [("plain", 4000, 100), ("transport", 4000, 100), ("wavelet", 4000, 100), ("exact", 400, 6)],
)
def test_denoising_sandwich_is_what_simulation_gives(field, kind, n, repeats):
    if kind == "exact":
        pytest.importorskip("ot")
    loss = emd_estimator.Exact(4, 2.0, draws=1000) if kind == "exact" else LOSSES[kind]
    random, information = np.random.default_rng(0), field.fisher_information(THETA)
    data = [
        emd_estimator.add_noise(field.draw(THETA, (n,), random), 0.6, random)
        for _ in range(repeats)
    ]
    hats = np.array([emd_estimator.denoising(field, d, loss) for d in data])
    limit = np.trace(information @ emd_estimator.denoising_covariance(field, THETA, 0.6, loss))
    assert close(n * emd_estimator.fisher_error(hats, THETA, information), limit)
    if kind != "exact":
        elsewhere = emd_estimator.denoising(field, data[0], loss, start=(0.4, 1.5), steps=40)
        assert np.sqrt(
            emd_estimator.fisher_error(elsewhere, hats[0], information)
        ) < 0.25 * math.sqrt(limit / n)


def test_best_weights_of_denoising_are_the_residuals(field):
    """Aitken: A = S^-1; the same for one draw of noise at every level. And nothing beats maximum
    likelihood."""
    information = field.fisher_information(THETA)
    for sigma in (0.3, 0.6, 0.9):
        best = emd_estimator.Squares(
            np.linalg.inv(emd_estimator.residual_covariance(field, THETA, sigma))
        )
        others = [
            emd_estimator.Squares(np.eye(16)),
            emd_estimator.Squares(emd_estimator.transport_weights(4)),
            emd_estimator.wavelet_loss(4),
        ]
        shares = [
            emd_estimator.efficiency(
                emd_estimator.denoising_covariance(field, THETA, sigma, loss), information
            )
            for loss in (best, *others)
        ]
        assert 1 > shares[0] > max(shares[1:])


def test_averaged_noise_is_many_draws_and_little_noise_is_none(field):
    moments = emd_estimator.draw_moments(field, THETA, (500,), 1, np.random.default_rng(0))[0, 0]
    a = emd_estimator.transport_weights(4)
    assert np.allclose(
        emd_estimator.averaged_denoising(field, moments, 1e-3, a),
        emd_estimator.score_matching(field, moments, a),
        rtol=1e-4,
    )
    assert np.allclose(
        emd_estimator.averaged_denoising_covariance(field, THETA, 1e-3, a),
        emd_estimator.score_matching_covariance(field, THETA, a),
        rtol=1e-4,
    )
    random = np.random.default_rng(1)
    x = field.draw(THETA, (500,), random)
    many = emd_estimator.denoising(
        field, emd_estimator.add_noise(np.tile(x, (400, 1)), 0.6, random), emd_estimator.Squares(a)
    )
    assert np.allclose(
        many,
        emd_estimator.averaged_denoising(field, emd_estimator.second_moments(x), 0.6, a),
        rtol=0.1,
    )


@pytest.mark.parametrize("sigma", [0.2, 0.7])
def test_averaged_sandwich_is_what_simulation_gives(field, sigma):
    information = field.fisher_information(THETA)
    for a in (np.eye(16), emd_estimator.transport_weights(4)):
        hats = np.array(
            [
                emd_estimator.averaged_denoising(field, m, sigma, a)
                for m in emd_estimator.draw_moments(
                    field, THETA, (2000,), 200, np.random.default_rng(3)
                )[0]
            ]
        )
        limit = np.trace(
            information @ emd_estimator.averaged_denoising_covariance(field, THETA, sigma, a)
        )
        assert close(2000 * emd_estimator.fisher_error(hats, THETA, information), limit)


def test_too_few_steps_are_told(field):
    random = np.random.default_rng(0)
    data = emd_estimator.add_noise(field.draw(THETA, (200,), random), 0.6, random)
    with pytest.raises(RuntimeError, match="did not settle within 1 steps"):
        emd_estimator.denoising(
            field, data, emd_estimator.Squares(np.eye(16)), start=(5.0, 0.1), steps=1
        )
    # maximum likelihood on the clean images is about a standard error off: not near enough
    for loss in LOSSES.values():
        with pytest.raises(RuntimeError, match="did not settle within 1 steps"):
            emd_estimator.denoising(field, data, loss, steps=1)
        emd_estimator.denoising(field, data, loss)
    with pytest.raises(RuntimeError, match="did not settle"):
        emd_estimator.averaged_denoising(
            field, emd_estimator.second_moments(data.images), 0.6, np.eye(16), steps=1
        )
    with pytest.raises(RuntimeError, match="did not settle"):
        emd_estimator.maximum_likelihood(field, emd_estimator.second_moments(data.images), steps=1)


# ---------------------------------------------------------------- the skewed family


@pytest.fixture
def family():
    return TiltedMixture()


GRID = np.linspace(-10, 10, 20001)


def density(family, theta):
    p = (
        np.exp(family.log_weights)
        * np.exp(-((GRID[:, None] - family.means) ** 2) / (2 * family.sd**2))
    ).sum(1) * np.exp(theta * GRID)
    return p / (p.sum() * (GRID[1] - GRID[0]))


@pytest.mark.parametrize("theta", [-0.7, 0.0, 0.9])
def test_tilted_mixture_is_that_family(family, theta):
    p, step = density(family, theta), GRID[1] - GRID[0]
    mean, variance = family.moments(theta)
    assert mean == pytest.approx((p * GRID).sum() * step) and variance == pytest.approx(
        (p * (GRID - mean) ** 2).sum() * step
    )
    middle = np.abs(GRID) < 4
    assert np.allclose(
        np.gradient(np.log(p[middle]), step)[1:-1],
        (family.base_score(GRID) + theta)[middle][1:-1],
        atol=1e-4,
    )
    d = family.draw(theta, (100_000,), np.random.default_rng(0))
    assert close(d, mean) and np.var(d) == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("sigma, noisy", [(0.3, 0.8), (0.7, -0.4), (0.95, 2.0)])
def test_posterior_by_integration(family, sigma, noisy):
    alpha, step, theta = math.sqrt(1 - sigma**2), GRID[1] - GRID[0], 0.3
    p = density(family, theta) * np.exp(-((noisy - alpha * GRID) ** 2) / (2 * sigma**2))
    p /= p.sum() * step
    eps = (noisy - alpha * GRID) / sigma
    w, m, sd = family.posterior(np.array(noisy), theta, sigma)
    mean, slope = family.eps_mean(np.array(noisy), theta, sigma)
    assert mean == pytest.approx((p * eps).sum() * step) and (
        w * (m**2 + sd**2)
    ).sum() == pytest.approx((p * eps**2).sum() * step)
    other = [family.eps_mean(np.array(noisy), theta + h, sigma)[0] for h in (-1e-5, 1e-5)]
    assert slope == pytest.approx((other[1] - other[0]) / 2e-5, rel=1e-5)


def test_only_the_unsquared_distance_is_biased(family):
    """On two pixels the earth mover's distance of an error is its absolute value; its estimator
    goes to the limit that quadrature gives, not to the truth."""
    assert exact_emd(
        np.array([[1.0, -1.0]]) / math.sqrt(2), np.zeros((1, 2)), solver="lp"
    ) == pytest.approx(1 / math.sqrt(2))
    theta, sigma, random = 0.2, 0.7, np.random.default_rng(0)
    d = family.draw(theta, (60, 8000), random)
    noised = emd_estimator.add_noise(d, sigma, random)
    limit = family.limit(theta, sigma)
    assert limit < theta - 0.04
    for hats in (
        family.maximum_likelihood(d),
        family.score_matching(d),
        family.denoising(noised.images, noised.eps, sigma, 2),
    ):
        assert close(hats, theta)
    hats = family.denoising(noised.images, noised.eps, sigma, 1)
    assert close(hats, limit) and not close(hats, theta, errors=10)


@pytest.mark.parametrize("theta", [-0.3, 0.0, 0.4])
def test_bias_for_small_noise(family, theta):
    for sigma in (0.02, 0.05):
        assert (family.limit(theta, sigma) - theta) / sigma**2 == pytest.approx(
            family.small_noise_bias(theta), rel=0.03
        )


def test_symmetric_posteriors_leave_no_bias():
    gauss = TiltedMixture(weights=(0.5, 0.5), means=(0.3, 0.3), sd=1.0)
    assert gauss.limit(0.4, 0.6) == pytest.approx(0.4, abs=1e-9) and gauss.small_noise_bias(
        0.4
    ) == pytest.approx(0, abs=1e-6)


def test_skewed_posteriors_can_leave_no_bias(family):
    """By symmetry, at a mixture that is its own mirror image; and by chance, where the bias changes
    its sign."""
    mirror, sigma = TiltedMixture((0.5, 0.5), (-1, 1), 0.6), 0.6
    w, m, sd = mirror.posterior(np.array(0.4), 0.0, sigma)
    assert 2 * (
        w * ndtr((mirror.eps_mean(np.array(0.4), 0.0, sigma)[0] - m) / sd)
    ).sum() - 1 == pytest.approx(0.126, abs=5e-4)
    assert (
        mirror.limit(0.0, sigma) == pytest.approx(0, abs=1e-9)
        and abs(mirror.limit(0.5, sigma) - 0.5) > 0.01
    )
    assert family.limit(0.5, sigma) - 0.5 == pytest.approx(-0.019, abs=5e-4) and family.limit(
        1.0, sigma
    ) - 1 == pytest.approx(0.029, abs=5e-4)


def test_maximum_likelihood_matches_the_mean(family):
    d = family.draw(0.5, (3, 500), np.random.default_rng(0))
    assert np.allclose(family.moments(family.maximum_likelihood(d))[0], d.mean(-1), atol=1e-5)
