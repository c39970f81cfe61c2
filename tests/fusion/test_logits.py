"""The mathematics against the paper's equation written out, autograd and scipy."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from trimix_lm_eval.fusion.logits import (
    best_point,
    fuse,
    grid_entropy,
    grid_nll_one_by_one,
    log_prob,
    plausible,
)
from trimix_lm_eval.fusion.newton import minimise, moments
from trimix_lm_eval.fusion.weights import PAPER_GRID, PRIOR, SOURCES, Weights
from trimix_lm_eval.utils.errors import TrimixError

TRIO = SOURCES[:3]
property_test = settings(derandomize=True, deadline=None, max_examples=60)
weight = st.floats(-1.0, 2.0, allow_nan=False, width=32)
seeds = st.integers(0, 10**6)


def draw(seed: int, count: int = 4, positions: int = 3, vocab: int = 11, scale: float = 3.0):
    """Random logits, one ``[N, V]`` tensor per source."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(positions, vocab, generator=generator) for _ in range(count)]


def paper(logits, alpha, beta, gamma):
    """L_sb + alpha (L_li - L_lb) + beta (L_sc - L_sb) + gamma (L_lb - L_sb), in float64."""
    li, sc, sb, lb = (x.double() for x in logits)
    return sb + alpha * (li - lb) + beta * (sc - sb) + gamma * (lb - sb)


# -------------------------------------------------------------------------------- weights


@property_test
@given(seeds, weight, weight, st.none() | weight)
def test_fuse_is_the_equation_of_the_paper(seed, alpha, beta, gamma):
    logits = draw(seed)
    fused = fuse(logits, torch.tensor(Weights(alpha, beta, gamma).vector(SOURCES)))
    expected = paper(logits, alpha, beta, alpha if gamma is None else gamma)
    torch.testing.assert_close(fused.double(), expected, rtol=0, atol=2e-5)


@property_test
@given(seeds, weight, weight)
def test_without_gamma_three_models_are_enough(seed, alpha, beta):
    logits = draw(seed)
    point = Weights(alpha, beta)
    assert point.by_source()["large_base"] == 0.0
    fused = fuse(logits[:3], torch.tensor(point.vector(TRIO)))
    li, sc, sb = (x.double() for x in logits[:3])
    three = alpha * li + beta * sc + (1 - alpha - beta) * sb
    torch.testing.assert_close(fused.double(), three, rtol=0, atol=2e-5)
    torch.testing.assert_close(three, paper(logits, alpha, beta, alpha), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("point", "names"),
    [
        (Weights(1.0, 0.0), ["large_ins"]),
        (Weights(0.0, 1.0), ["small_cpt"]),
        (Weights(0.0, 0.0), ["small_base"]),
        (Weights(0.0, 0.0, 1.0), ["large_base"]),
        (Weights(0.3, 0.7), ["large_ins", "small_cpt"]),
        (Weights(0.0, 0.4, 0.6), ["small_cpt", "large_base"]),
    ],
)
def test_two_sources_and_one(point, names):
    logits = dict(zip(SOURCES, draw(4), strict=True))
    vector = torch.tensor(point.vector(names))
    fused = fuse([logits[n] for n in names], vector)
    gamma = point.alpha if point.gamma is None else point.gamma
    expected = paper(logits.values(), point.alpha, point.beta, gamma)
    torch.testing.assert_close(fused.double(), expected, rtol=0, atol=1e-5)


def test_fuse_takes_a_row_of_weights_per_position():
    logits = draw(5, positions=4)
    points = [Weights(0.1, 0.9), Weights(1.0, 0.0), Weights(0.5, 0.5, 0.2), Weights(0.3, 1.0)]
    vectors = torch.tensor([p.vector(SOURCES) for p in points])
    together = fuse(logits, vectors)
    for i, vector in enumerate(vectors):
        alone = fuse([x[i : i + 1] for x in logits], vector)
        assert torch.equal(together[i : i + 1], alone)


def test_fuse_leaves_its_input_alone():
    logits = draw(6)
    before = [x.clone() for x in logits]
    fuse(logits, torch.tensor([1.0, 0.0, 0.0, 0.0])).fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(logits, before, strict=True))


@property_test
@given(seeds, weight, weight, st.none() | weight)
def test_log_probabilities_give_the_same_softmax_as_logits(seed, alpha, beta, gamma):
    logits = draw(seed)
    vector = torch.tensor(Weights(alpha, beta, gamma).vector(SOURCES))
    raw = fuse(logits, vector).softmax(-1)
    normal = fuse([x.log_softmax(-1) for x in logits], vector).softmax(-1)
    torch.testing.assert_close(raw, normal, rtol=1e-4, atol=1e-6)


@property_test
@given(weight, weight, st.none() | weight)
def test_weights_sum_to_one(alpha, beta, gamma):
    assert sum(Weights(alpha, beta, gamma).by_source().values()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("tenths", range(11))
@pytest.mark.parametrize("parts", [10, 20, 7])
def test_alpha_and_beta_that_sum_to_one_switch_small_base_off_exactly(tenths, parts):
    alpha = min(tenths, parts) / parts
    assert Weights(alpha, 1.0 - alpha).by_source()["small_base"] == 0.0
    assert Weights(1.0 - alpha, alpha).by_source()["small_base"] == 0.0


def test_a_source_with_weight_but_absent_is_an_error_that_names_it():
    with pytest.raises(TrimixError, match=r"0\.3:0\.3 gives small_base the weight 0\.4") as error:
        Weights(0.3, 0.3).vector(["large_ins", "small_cpt"])
    assert "small_base=<Hub id or folder>" in str(error.value)
    with pytest.raises(TrimixError, match="large_base the weight -0.1"):
        Weights(0.3, 0.3, 0.2).vector(TRIO)


def test_labels():
    assert Weights(0.1, 0.9).label() == "0.1:0.9"
    assert Weights(0.1, 1.0, 0.30000001).label() == "0.1:1:0.3"
    assert len({p.label() for p in PAPER_GRID}) == 36


def test_paper_grid():
    values = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    assert set(PAPER_GRID) == {Weights(a, b) for a, b in product(values, values)}
    assert len(PAPER_GRID) == 36
    assert PRIOR in PAPER_GRID


# -------------------------------------------------------------------------------- plausibility


@property_test
@given(seeds, st.floats(1e-4, 0.99))
def test_plausible_keeps_what_the_reference_gives_a_fraction_of_its_best(seed, a):
    fused, reference = draw(seed, count=2)
    p = reference.double().softmax(-1)
    ratio = p / p.amax(-1, keepdim=True)
    kept = plausible(fused.clone(), reference, a)
    clear = (ratio / a - 1).abs() > 1e-5  # a token on the threshold may fall either way
    assert torch.equal((kept > -torch.inf)[clear], (ratio > a)[clear])
    assert torch.equal(kept[kept > -torch.inf], fused[kept > -torch.inf])


@property_test
@given(
    seeds,
    st.floats(1e-6, 1.0, exclude_min=True, exclude_max=True),
    st.floats(0.01, 1e4),
    st.floats(-1e4, 1e4),
)
def test_at_least_the_best_token_survives(seed, a, scale, shift):
    fused, reference = draw(seed, count=2)
    reference = reference * scale + shift
    kept = plausible(fused.clone(), reference, a)
    best = reference.argmax(-1, keepdim=True)
    assert (kept.gather(-1, best) > -torch.inf).all()


@pytest.mark.parametrize("a", [0.9999999, 1 - 1e-9, math.nextafter(1.0, 0.0)])
def test_a_fraction_near_one_leaves_the_best_token(a):
    reference = torch.tensor([[20.0, 1.0, 2.0]])
    kept = plausible(torch.zeros(1, 3), reference, a)
    assert kept.tolist() == [[0.0, -math.inf, -math.inf]]


# -------------------------------------------------------------------------------- likelihoods


@property_test
@given(seeds, st.sampled_from([0.1, 3.0, 60.0]))
def test_log_prob_equals_float64(seed, scale):
    (logits,) = draw(seed, count=1, positions=5, vocab=300, scale=scale)
    targets = torch.arange(5) * 7
    expected = logits.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    got = log_prob(logits, targets)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_log_prob_of_a_removed_token_is_minus_infinity():
    logits = torch.tensor([[0.0, -math.inf, 1.0]])
    assert log_prob(logits, torch.tensor([1])).tolist() == [-math.inf]


@property_test
@given(seeds)
def test_grid_nll_and_entropy_equal_float64(seed):
    logits = draw(seed, count=3, positions=4, vocab=50)
    vectors = torch.tensor([p.vector(TRIO) for p in PAPER_GRID])
    targets = torch.tensor([1, 0, 49, 7])
    nll = grid_nll_one_by_one(logits, targets, vectors)
    entropy = grid_entropy(logits, vectors)
    assert nll.shape == entropy.shape == (36, 4)
    li, sc, sb = (x.double() for x in logits)
    for row, (a, b, _) in enumerate(PAPER_GRID):
        log_p = (a * li + b * sc + (1 - a - b) * sb).log_softmax(-1)
        expected = -log_p.gather(-1, targets[:, None])[:, 0]
        torch.testing.assert_close(nll[row].double(), expected, rtol=1e-5, atol=1e-5)
        h = -(log_p.exp() * log_p).sum(-1)
        torch.testing.assert_close(entropy[row].double(), h, rtol=1e-5, atol=1e-5)


def test_entropy_bounds():
    flat, peaked = torch.zeros(1, 64), torch.zeros(1, 64)
    peaked[0, 3] = 1e3
    one = torch.ones(1, 1)
    assert grid_entropy([flat], one).item() == pytest.approx(math.log(64), rel=1e-6)
    assert grid_entropy([peaked], one).item() == 0.0


@property_test
@given(seeds, weight, weight, weight)
def test_moments_equal_autograd(seed, alpha, beta, gamma):
    logits = draw(seed, positions=6, scale=1.5)
    targets = torch.tensor([0, 1, 2, 3, 4, 10])
    vector = torch.tensor(Weights(alpha, beta, gamma).vector(SOURCES), dtype=torch.float64)
    stacked = torch.stack(logits).double()  # [S, N, V]

    def nll(w):
        fused = torch.einsum("s,snv->nv", w, stacked)
        return -fused.log_softmax(-1).gather(-1, targets[:, None]).sum()

    got = moments(logits, targets, vector)
    assert got.nll.dtype == got.gradient.dtype == got.hessian.dtype == torch.float64
    close = {"rtol": 2e-5, "atol": 2e-4}
    torch.testing.assert_close(got.nll, nll(vector), **close)
    torch.testing.assert_close(
        got.gradient, torch.autograd.functional.jacobian(nll, vector), **close
    )
    expected = torch.autograd.functional.hessian(nll, vector)
    torch.testing.assert_close(got.hessian, expected, **close)
    assert torch.linalg.eigvalsh(got.hessian).min() >= -1e-4  # convex


def test_hessian_does_not_cancel_where_the_target_is_improbable():
    """All mass on another token, far above the target's logit: variances are tiny, not noise."""
    for seed in range(20):
        logits = draw(seed, count=3, positions=1, vocab=16, scale=25.0)
        vector = torch.tensor([0.5, 0.5, 0.0])
        got = moments(logits, torch.tensor([seed % 16]), vector).hessian
        exact_ = torch.cat(logits).double()  # [S, V]
        p = (vector.double() @ exact_).softmax(-1)
        away = exact_ - (exact_ @ p)[:, None]
        expected = (away * p) @ away.T
        scale = float(expected.diagonal().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3 * scale + 1e-8)


def test_moments_add_up_over_chunks():
    logits, targets = draw(9, positions=7), torch.arange(7)
    vector = torch.tensor(Weights(0.3, 0.5, 0.1).vector(SOURCES))
    whole = moments(logits, targets, vector)
    parts = [
        moments([x[s] for x in logits], targets[s], vector)
        for s in (slice(0, 3), slice(3, 4), slice(4, 7))
    ]
    total = parts[0].plus(parts[1]).plus(parts[2])
    for got, expected in zip(total, whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for got, expected in zip(whole.times(0.5), whole, strict=True):
        torch.testing.assert_close(got, expected / 2)


# -------------------------------------------------------------------------------- Newton


def problem(seed: int, kind: str):
    """Random logits and targets: (logits, targets)."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 30, (), generator=generator))
    v = int(torch.randint(2, 40, (), generator=generator))
    scale = 10 ** float(torch.rand((), generator=generator) * 2.5 - 1)
    logits = [scale * torch.randn(n, v, generator=generator) for _ in TRIO]
    if kind == "near":  # the continually pretrained model has hardly moved
        logits[1] = logits[2] + 0.01 * logits[1]
    if kind == "tilted":  # a narrow valley across the square
        logits[0] = logits[1] + 0.05 * logits[0]
    targets = torch.randint(v, (n,), generator=generator)
    if kind == "easy":  # targets that some point inside the square predicts well
        a, b = torch.rand(2, generator=generator).tolist()
        targets = (a * logits[0] + 2 * b * logits[1] - 0.5 * logits[2]).argmax(-1)
    return logits, targets


def exact(logits, targets):
    """Mean NLL and its gradient in (alpha, beta), float64; and scipy's minimum in the square."""
    li, sc, sb = (x.double() for x in logits)
    columns = [li - sb, sc - sb]

    def value(theta):
        fused = sb + theta[0] * columns[0] + theta[1] * columns[1]
        log_p = fused.log_softmax(-1)
        gradient = [
            ((log_p.exp() * d).sum(-1) - d.gather(1, targets[:, None])[:, 0]).mean()
            for d in columns
        ]
        nll = -log_p.gather(1, targets[:, None]).mean()
        return float(nll), np.array([float(g) for g in gradient])

    options = {"ftol": 1e-15, "gtol": 1e-12}
    found = [
        minimize(value, x, jac=True, bounds=[(0, 1)] * 2, method="L-BFGS-B", options=options)
        for x in ([0.5, 0.5], [0.0, 1.0], [1.0, 0.0])
    ]
    return value, min(found, key=lambda r: r.fun)


def solve(logits, targets):
    """Our minimum of the mean NLL, and how many evaluations it took."""
    calls = []

    def objective(weights):
        calls.append(weights)
        return moments(logits, targets, weights).times(1 / len(targets))

    return minimise(objective, TRIO), len(calls)


@pytest.mark.parametrize("kind", ["plain", "near", "tilted", "easy"])
@pytest.mark.parametrize("seed", range(28))
def test_minimise_finds_the_minimum_in_the_unit_square(seed, kind):
    logits, targets = problem(seed, kind)
    point, _ = solve(logits, targets)
    value, best = exact(logits, targets)
    assert 0.0 <= point.alpha <= 1.0
    assert 0.0 <= point.beta <= 1.0
    assert point.gamma is None
    assert value(point[:2])[0] <= best.fun + 1e-5 * (1 + abs(best.fun))


@pytest.mark.parametrize(
    ("positions", "vocab", "scale", "seed"),
    [(1, 4, 25.0, 1), (1, 16, 25.0, 3), (4, 23, 25.0, 0), (4, 19, 23.0, 7), (12, 18, 11.0, 2)],
)
def test_minimise_where_the_start_is_saturated(positions, vocab, scale, seed):
    """Few tokens and sharp logits: the Hessian is almost zero and a full step is absurd."""
    for shift in range(12):
        logits = draw(1000 * shift + seed, 3, positions, vocab, scale)
        targets = (torch.arange(positions) * 5 + shift) % vocab
        point, _ = solve(logits, targets)
        value, best = exact(logits, targets)
        assert value(point[:2])[0] <= best.fun + 1e-5 * (1 + abs(best.fun)), (shift, point, best.x)


def test_minimise_inside_the_square_takes_few_evaluations():
    generator = torch.Generator().manual_seed(0)
    logits = [2 * torch.randn(400, 50, generator=generator) for _ in TRIO]
    truth = torch.tensor(Weights(0.3, 0.6).vector(TRIO))
    p = fuse(logits, truth).softmax(-1)
    targets = torch.multinomial(p, 1, generator=generator)[:, 0]
    point, calls = solve(logits, targets)
    _, best = exact(logits, targets)
    assert point[:2] == pytest.approx(best.x, abs=1e-4)
    assert point[:2] == pytest.approx([0.3, 0.6], abs=0.15)  # the truth, up to sampling
    assert calls <= 8


@pytest.mark.parametrize(("alpha", "beta"), [(-0.4, 0.5), (0.5, 1.6), (1.5, 1.5), (-0.5, 1.5)])
def test_minimise_on_the_boundary(alpha, beta):
    generator = torch.Generator().manual_seed(1)
    logits = [torch.randn(300, 30, generator=generator) for _ in TRIO]
    p = fuse(logits, torch.tensor(Weights(alpha, beta).vector(TRIO))).softmax(-1)
    targets = torch.multinomial(p, 1, generator=generator)[:, 0]
    point, _ = solve(logits, targets)
    _, best = exact(logits, targets)
    assert point[:2] == pytest.approx(best.x, abs=2e-4)
    if not 0 <= alpha <= 1:
        assert point.alpha == min(max(alpha, 0.0), 1.0)


def test_minimise_of_identical_sources_is_flat_and_stays_finite():
    (one,) = draw(3, count=1)
    point, calls = solve([one] * 3, torch.tensor([0, 1, 2]))
    assert all(0.0 <= x <= 1.0 for x in point[:2])
    assert calls < 10
    assert solve([one] * 3, torch.tensor([0, 1, 2]))[0] == point


def test_minimise_with_one_direction_flat_still_finds_the_other():
    logits = draw(8, count=3, positions=40)
    logits[0] = logits[2].clone()  # alpha changes nothing
    targets = torch.arange(40) % 11
    point, _ = solve(logits, targets)
    value, best = exact(logits, targets)
    assert value(point[:2])[0] <= best.fun + 1e-6
    assert point.beta == pytest.approx(best.x[1], abs=1e-3)


# -------------------------------------------------------------------------------- the grid


def test_best_point_is_the_lowest_mean():
    nll = torch.full((36,), 50.0)
    nll[17] = 49.0
    assert best_point(nll, 10, PAPER_GRID) == 17


def test_among_ties_the_first_wins_and_rounding_is_no_evidence():
    nll = torch.tensor([3.0, 2.0 + 5e-6, 2.0, 2.0], dtype=torch.float64)
    points = PAPER_GRID[:4]
    assert best_point(nll, 10, points) == 1  # 5e-7 nats per token
    assert best_point(nll, 1, points) == 2  # 5e-6 nats per token
    assert best_point(torch.zeros(4), 3, points) == 0


def test_without_evidence_the_point_nearest_to_the_prior_is_taken():
    assert PAPER_GRID[best_point(torch.zeros(36), 0, PAPER_GRID)] == PRIOR
    points = (Weights(1.0, 0.0), Weights(0.3, 0.8), Weights(0.0, 0.0))
    assert best_point(torch.zeros(0), 0, points) == 1
