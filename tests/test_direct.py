"""The direct cascade: a distribution over images, the same on every machine, and its coder."""

import itertools

import numpy as np
import pytest
import torch

import pcdm_lib as pcdm
from pcdm_lib.coding import mixtures
from pcdm_lib.likelihood import information_map
from pcdm_lib.likelihood.flow import evaluate_flow
from pcdm_lib.likelihood.three_ways import compare_likelihoods
from pcdm_lib.models import direct
from pcdm_lib.models.integers import EXACT, WholeConv2d, check_sums, whole_weights
from pcdm_lib.models.mixture import WIDTH_STEP, WIDTHS, Mixture, mixture_nats, width


def network(colours=1, max_value=255, seed=0):
    """One that has moved away from its start, so that no term is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = direct.DirectNetwork(colours, 8, 1, max_value)
        for parameter in made.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter) / parameter[0].numel() ** 0.5
    return made.eval()


def every_image(colours, height, width, max_value):
    values = itertools.product(range(max_value + 1), repeat=colours * height * width)
    return torch.tensor([*values], dtype=torch.int32).view(-1, colours, height, width)


@pytest.mark.parametrize(
    ("shape", "max_value"),
    [((1, 2, 2), 3), ((1, 4, 2), 1), ((1, 3, 3), 1), ((1, 1, 5), 1), ((3, 2, 1), 2)],
)
def test_kraft(shape, max_value):
    """All images: the sum is 1, and below it where rows are repeated, whose parity the network
    does not know."""
    with torch.no_grad():
        nats = network(shape[0], max_value)(
            every_image(*shape, max_value), dtype=torch.float64
        ).sum(dim=1)
    total = float((-nats).exp().sum())
    assert total <= 1 + 1e-9
    if shape[1] == shape[2]:
        exact = shape[1] % 2 == 0
        assert (abs(total - 1) < 1e-9) == exact


@pytest.mark.parametrize("colours", [1, 3])
def test_batches_threads_and_order_change_nothing(colours):
    made = network(colours)
    x = torch.randint(0, 256, (6, colours, 13, 10), generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()

    def outputs(images):
        """What the network says of the finest level, whole numbers."""
        level = direct.pyramid(images.int())[1][-1]
        known = direct.detail_features(1, level.details)
        seen = direct.phase_input(direct.coarse_features(1, level.coarse), known, 1)
        f = made.trunk(seen, torch.ones(len(images), dtype=torch.long), 1)
        return made.head(f, 1, direct.of_phase(level.details, 1))

    try:
        with torch.no_grad():
            found = []
            for count, rows in ((1, [[0, 1, 2, 3, 4, 5]]), (2, [[0], [1, 2], [3, 4, 5]])):
                torch.set_num_threads(count)
                found.append(torch.cat([outputs(x[r]) for r in rows]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found) and bool((found[0] == found[0].round()).all())


def test_information_adds_up_to_the_likelihood():
    model = pcdm.build(pcdm.preset("tiny", "direct", (3, 16, 16)).model).eval()
    x = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    found = information_map(model, x.to(torch.uint8))
    torch.testing.assert_close(
        found.bits() * np.log(2), model.bound(x.to(torch.uint8)).per_scale.detach()
    )
    assert found.pixel_bits().shape == (3, 5, 16, 16)


def test_what_needs_noise_refuses_it():
    model = pcdm.build(pcdm.preset("tiny", "direct", (3, 8, 8)).model).eval()
    x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for ask in (
        lambda: compare_likelihoods(model, x),
        lambda: evaluate_flow(model, x),
        lambda: model.with_schedules([]),
        lambda: model.bound(x, steps=10),
    ):
        with pytest.raises(ValueError, match="direct cascade"):
            ask()


def test_draws_are_the_models():
    """Every image of 2x2 bits comes as often as the model says."""
    model = pcdm.build(
        pcdm.preset("tiny", "direct", (1, 2, 2)).override({"max_value": 1}).model
    ).eval()
    every = every_image(1, 2, 2, 1)
    with torch.no_grad():
        p = (-model.network(every, dtype=torch.float64).sum(dim=1)).exp().numpy()
    drawn = model.sample(4000, generator=torch.Generator().manual_seed(0)).images.flatten(1)
    counts = np.bincount((drawn * torch.tensor([8, 4, 2, 1])).sum(dim=1).numpy(), minlength=16)
    order = (every.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(dim=1).numpy()
    expected = 4000 * p
    spread = np.sqrt(expected * (1 - p)) + 1e-9
    assert np.all(np.abs(counts[order] - expected) < 5 * spread)


def test_pyramid_is_undone_at_any_side():
    for height, wide in [(1, 1), (1, 7), (5, 3), (8, 8), (13, 6)]:
        x = torch.randint(0, 256, (2, 3, height, wide), dtype=torch.int32)
        coarse, levels = direct.pyramid(x)
        sides = [(height, wide)]
        for _ in levels:
            sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
        for level in levels:
            assert torch.equal(coarse, level.coarse)
            coarse = direct.finer(level, *sides[level.number - 1])
            if level.coded is not None:
                assert not bool(level.details[:, ~level.coded].any())
        assert torch.equal(coarse, x)


def test_one_phase_stands_for_all():
    """The draw of a phase and a level has the whole as its mean."""
    made = network(1)
    x = torch.randint(0, 256, (1, 1, 16, 16), generator=torch.Generator().manual_seed(2)).int()
    with torch.no_grad():
        whole = made(x, dtype=torch.float64)
        # two levels from 3 on, and four phases
        deals = [direct.Deal(torch.tensor([k % 4]), k // 4) for k in range(8)]
        draws = [made(x, deal, dtype=torch.float64) for deal in deals]
    torch.testing.assert_close(torch.stack(draws).mean(dim=0), whole)


def test_weights_fit_their_grid_and_sums_are_bounded():
    layer = WholeConv2d(4, 6, 3)
    whole, step = whole_weights(layer.weight)
    assert whole.abs().max() == 127
    assert bool(((whole * step - layer.weight).abs() <= 0.5001 * step).all())
    x = torch.full((1, 4, 3, 3), 255.0)
    reached = torch.nn.functional.conv2d(x, whole.abs(), padding=1).max().detach()
    assert float(reached) == check_sums(layer) < EXACT
    # alike weights, the worst case: the steps grow, and the sums stay below the limit
    alike = WholeConv2d(150, 2, 3)
    torch.nn.init.ones_(alike.weight)
    whole, step = (part.detach() for part in whole_weights(alike.weight))
    assert 0 < float(whole.min()) < 127 and 0.9 * EXACT < check_sums(alike) < EXACT
    assert bool(((whole * step - 1).abs() <= 0.5001 * step).all())
    with pytest.raises(ValueError, match="too many to add exactly"):
        WholeConv2d(20_000, 1, 3)


def test_a_coefficient_does_not_see_later_ones():
    made = network(3)
    features = torch.randint(0, 256, (1, 8, 2, 2)).float()
    details = torch.randint(-20, 20, (1, 9, 2, 2))
    changed = details.clone()
    changed[:, 5:] += 4
    with torch.no_grad():
        a, b = (made.head(features, 1, d) for d in (details, changed))
    assert torch.equal(a[:, :6], b[:, :6]) and not torch.equal(a[:, 6:], b[:, 6:])


def symbols(n, level, seed):
    rng = np.random.default_rng(seed)
    unit = 4 ** (level - 1)
    step = 2
    low = -rng.integers(0, 200, n) * unit // step * step
    last = rng.integers(0, 200, n) * unit
    return mixtures.Symbols(
        rng.integers(-100, 100, (n, 5)),
        rng.integers(-2000, 2000, (n, 5)),
        rng.integers(0, WIDTHS, (n, 5)),
        low.astype(np.int64),
        last.astype(np.int64),
        step,
        2 * (level - 1),
    )


def nats_of(s, z):
    """The same by mixture_nats."""
    unit = 2.0**s.shift

    def grid(t):
        return torch.from_numpy(np.asarray(t, dtype=np.float64)).view(len(z), 1, 1, 1)

    parts = (torch.from_numpy(t).double().view(len(z), 1, 5, 1, 1) for t in s[:3])
    step = torch.full((1, 1, 1, 1), s.step / unit, dtype=torch.float64)
    high = s.low + s.last * s.step
    return mixture_nats(
        Mixture(*parts), grid(z) / unit, grid(s.low) / unit, grid(high) / unit, step
    )


@pytest.mark.parametrize("level", [1, 2, 4, 7])
def test_coder_gives_back_and_pays_what_the_mixture_says(level):
    s = symbols(20_000, level, level)
    rng = np.random.default_rng(9)
    # draws of the heaviest component, which are cheap, as a network's are
    best = s.logits.argmax(axis=1)
    rows = np.arange(len(best))
    spread = np.array([float(width(k)) for k in range(WIDTHS)])[s.widths[rows, best]]
    drawn = (s.places[rows, best] / 16 + spread * rng.logistic(size=len(best))) * 2.0**s.shift
    z = s.low + s.step * np.clip((drawn - s.low) // s.step, 0, s.last).astype(np.int64)
    answers = mixtures.Answers()
    mixtures.code(answers, s, z)
    words = answers.words()
    assert np.array_equal(mixtures.code(mixtures.Answers(words), s), z)
    ideal = float(nats_of(s, z).sum()) / np.log(2)
    assert abs(32 * len(words) - ideal) < 64 + 0.001 * ideal


def test_coder_codes_the_most_unlikely_values():
    s = symbols(500, 1, 3)
    for z in (s.low, s.low + s.last * s.step):
        answers = mixtures.Answers()
        mixtures.code(answers, s, z)
        assert np.array_equal(mixtures.code(mixtures.Answers(answers.words()), s), z)
    with pytest.raises(ValueError, match="not one of the values allowed"):
        mixtures.code(mixtures.Answers(), s, s.low - 2)


def test_tables_are_the_same_everywhere():
    """Pinned: another value would make files that no other machine reads."""
    found = mixtures.tables()
    assert [int(t.sum()) for t in found] == TABLE_SUMS
    assert bool((np.diff(found.logistic) >= 0).all())
    assert abs(float(width(WIDTH_STEP)) - 0.06 * np.e) < 1e-12


TABLE_SUMS = [68753031168, 752164754015, 67606]
