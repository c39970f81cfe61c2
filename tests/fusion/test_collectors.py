"""What collectors keep of a prompt does not depend on how the prompt is cut into chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimix_lm_eval.fusion.collectors import prequential
from trimix_lm_eval.fusion.policies.entropy import EntropyCollector
from trimix_lm_eval.fusion.policies.perplexity import GridCollector
from trimix_lm_eval.fusion.weights import PAPER_GRID, PRIOR, SOURCES

TRIO = SOURCES[:3]
property_test = settings(derandomize=True, deadline=None, max_examples=50)


class Fixed:
    """Logits in hand, handed out ``step`` positions at a time."""

    def __init__(self, logits, step):
        self.logits, self.step = logits, step

    def chunks(self):
        n = len(self.logits[0])
        for start in range(0, n, self.step):
            where = slice(start, min(start + self.step, n))
            yield where, [x[where] for x in self.logits]

    def check(self, finite):
        assert bool(finite.all())


def draw(seed, positions, vocab=13):
    generator = torch.Generator().manual_seed(seed)
    logits = [2 * torch.randn(positions, vocab, generator=generator) for _ in TRIO]
    return logits, torch.randint(vocab, (positions,), generator=generator)


cuts = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def settle(collector):
    """As the engine does when a batch of prompts is over."""
    values = collector.unsettled()
    if values is not None:
        collector.settle(values.double().cpu())
    assert collector.unsettled() is None


@property_test
@given(st.integers(0, 10**6), cuts, st.integers(1, 4))
def test_a_grid_read_in_chunks_is_the_grid_read_whole(seed, sizes, step):
    logits, targets = draw(seed, sum(sizes))
    collector = GridCollector(TRIO, PAPER_GRID)
    at = 0
    for size in sizes:
        part = slice(at, at + size)
        collector.read(Fixed([x[part] for x in logits], step), targets[part])
        at += size
    settle(collector)
    assert collector.count == len(targets)
    li, sc, sb = (x.double() for x in logits)
    for i, (a, b, _) in enumerate(PAPER_GRID):
        log_p = (a * li + b * sc + (1 - a - b) * sb).log_softmax(-1)
        expected = -sum(float(log_p[t, target]) for t, target in enumerate(targets))
        assert float(collector.nll[i]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@property_test
@given(st.integers(0, 10**6))
def test_entropy_is_that_of_the_last_position(seed):
    logits, _ = draw(seed, 1)
    collector = EntropyCollector(TRIO, PAPER_GRID)
    assert collector.entropy is None
    collector.read_next(Fixed(logits, 1))
    settle(collector)
    li, sc, sb = (x.double() for x in logits)
    for i, (a, b, _) in enumerate(PAPER_GRID):
        log_p = (a * li + b * sc + (1 - a - b) * sb).log_softmax(-1)
        assert float(collector.entropy[i]) == pytest.approx(
            float(-(log_p.exp() * log_p).sum()), abs=1e-5
        )


def test_collectors_of_a_grid_keep_no_logits():
    logits, targets = draw(0, 200, vocab=50)
    collector = GridCollector(TRIO, PAPER_GRID)
    collector.read(Fixed(logits, 7), targets)
    settle(collector)
    kept = [v for v in vars(collector).values() if isinstance(v, torch.Tensor)]
    assert sum(v.numel() for v in kept) == 36 + 36 * 3


# -------------------------------------------------------------------------------- prequential


def double_loop(nll, points):
    """The definition: for each token, the first point whose past is within 1e-6 of the best."""
    chosen = []
    for t in range(nll.shape[1]):
        if t == 0:
            nearest = [abs(p.alpha - PRIOR.alpha) + abs(p.beta - PRIOR.beta) for p in points]
            chosen.append(nearest.index(min(nearest)))
            continue
        means = [sum(float(nll[p, s]) for s in range(t)) / t for p in range(len(points))]
        chosen.append(next(i for i, m in enumerate(means) if m <= min(means) + 1e-6))
    return chosen


@property_test
@given(st.integers(0, 10**6), st.integers(1, 36), st.integers(1, 25), st.booleans())
def test_prequential_is_the_double_loop(seed, count, length, ties):
    generator = torch.Generator().manual_seed(seed)
    nll = 3 * torch.rand(count, length, generator=generator)
    if ties:
        nll = nll.round()
    points = PAPER_GRID[:count]
    assert prequential(nll, points).tolist() == double_loop(nll, points)


def test_the_first_token_takes_the_prior():
    nll = torch.zeros(36, 1)
    assert PAPER_GRID[int(prequential(nll, PAPER_GRID)[0])] == PRIOR
    assert prequential(torch.zeros(36, 0), PAPER_GRID).tolist() == []


@property_test
@given(st.integers(0, 10**6), st.integers(0, 19), st.sampled_from([0.0, 1e9, 1e30]))
def test_the_present_and_the_future_do_not_reach_the_past(seed, when, value):
    generator = torch.Generator().manual_seed(seed)
    nll = 3 * torch.rand(36, 20, generator=generator)
    before = prequential(nll, PAPER_GRID)
    changed = nll.clone()
    changed[:, when:] = value * torch.rand(36, 20 - when, generator=generator)
    after = prequential(changed, PAPER_GRID)
    assert torch.equal(before[: when + 1], after[: when + 1])
