"""The mathematics against the paper's equation written out, autograd and scipy."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimix_lm_eval.fusion.logits import (
    best_point,
    fuse,
    grid_entropy,
    grid_nll_one_by_one,
    log_prob,
    plausible,
)
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
