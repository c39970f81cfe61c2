"""The grid by factors: the same numbers as point by point, whatever the logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimix_lm_eval.fusion import logits as module
from trimix_lm_eval.fusion.logits import grid_nll, grid_nll_one_by_one
from trimix_lm_eval.fusion.weights import PAPER_GRID, Weights

TRIO = ("large_ins", "small_cpt", "small_base")
PAPER = torch.tensor([point.vector(TRIO) for point in PAPER_GRID])


def logits(seed: int, rows: int, vocab: int, scale: float, apart: float) -> list[torch.Tensor]:
    """Three sources that agree on most of it; `apart` says how little."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, vocab, generator=generator) * scale
    return [common + torch.randn(rows, vocab, generator=generator) * apart for _ in TRIO]


def exact(sources, targets, points):
    """Point by point in float64."""
    return grid_nll_one_by_one([s.double() for s in sources], targets, points.double())


def close(sources, targets, points, tolerance=1e-4):
    found = grid_nll(sources, targets, points)
    assert found.shape == (len(points), len(targets))
    torch.testing.assert_close(
        found.double(), exact(sources, targets, points), rtol=1e-6, atol=tolerance
    )


@pytest.mark.parametrize("steps", [7, 30, 300])
def test_steps_that_are_no_round_numbers_do_not_add_up_to_an_error(steps):
    sources = logits(0, 4, 500, 6.0, 6.0)
    points = torch.tensor([[a / steps, b, 1 - a / steps - b] for a in range(steps) for b in (0, 1)])
    close(sources, torch.arange(4), points, tolerance=2e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 20),
    vocab=st.integers(2, 600),
    scale=st.sampled_from([0.0, 0.5, 3.0, 8.0, 30.0]),
    apart=st.sampled_from([0.0, 0.3, 2.0, 10.0]),
)
def test_equals_point_by_point(seed, rows, vocab, scale, apart):
    sources = logits(seed, rows, vocab, scale, apart)
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(seed))
    close(sources, targets, PAPER)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    points=st.lists(
        st.tuples(st.floats(-0.5, 2.0, width=16), st.floats(-0.5, 2.0, width=16)),
        min_size=1,
        max_size=12,
    ),
    scale=st.sampled_from([2.0, 12.0]),
)
def test_any_points_will_do(points, scale):
    vectors = torch.tensor([Weights(a, b).vector(TRIO) for a, b in points])
    sources = logits(len(points), 5, 300, scale, 1.5)
    close(sources, torch.arange(5), vectors)


@pytest.mark.parametrize("span", [70.0, 74.0, 100.0, 400.0, 1e4])
@pytest.mark.parametrize("source", [0, 1, 2])
def test_logits_that_span_more_than_fp32_can_hold(span, source):
    sources = logits(1, 9, 200, 2.0, 1.0)
    sources[source][:, 7] += span
    sources[(source + 1) % 3][:, 11] -= span
    close(sources, torch.arange(9) + 5, PAPER, tolerance=1e-4 * max(1.0, span / 100))


def test_sources_that_contradict_each_other():
    # What one finds certain the others find impossible: no factor may be lost.
    sources = [torch.full((3, 50), -300.0) for _ in TRIO]
    for number, source in enumerate(sources):
        source[:, 10 * number] = 0.0
    close(sources, torch.tensor([0, 10, 20]), PAPER, tolerance=1e-3)


def test_ids_without_a_token():
    sources = logits(2, 6, 100, 3.0, 1.0)
    for source in sources:
        source[:, 40:44] = -1e4
    close(sources, torch.arange(6), PAPER)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value):
    sources = logits(3, 4, 60, 2.0, 1.0)
    sources[1][2, 5] = value
    assert not grid_nll(sources, torch.arange(4), PAPER)[:, 2].isfinite().any()


@pytest.mark.parametrize("names", [TRIO[:2], (*TRIO, "large_base")])
def test_two_or_four_sources(names):
    points = [Weights(a, 1 - a) for a in (0.1, 0.3, 0.5, 0.7, 1.0)]
    vectors = torch.tensor([point.vector(names) for point in points])
    sources = (logits(4, 6, 80, 3.0, 1.0) + logits(5, 6, 80, 3.0, 1.0))[: len(names)]
    close(sources, torch.arange(6), vectors)


def test_no_position_gives_no_number():
    sources = [source[:0] for source in logits(3, 4, 60, 2.0, 1.0)]
    assert grid_nll(sources, torch.arange(0), PAPER).shape == (len(PAPER), 0)


def test_how_the_work_is_cut_does_not_matter(monkeypatch):
    sources = logits(6, 21, 5000, 3.0, 1.0)
    targets = torch.arange(21) * 100
    whole = grid_nll(sources, targets, PAPER)
    for rows, block in ((1, 7), (5, 512), (64, 100_000)):
        monkeypatch.setattr(module, "_ROWS", rows)
        monkeypatch.setattr(module, "_BLOCK", block)
        torch.testing.assert_close(grid_nll(sources, targets, PAPER), whole, rtol=0, atol=2e-5)


def test_it_is_the_factors_that_are_used(monkeypatch):
    monkeypatch.setattr(module, "grid_nll_one_by_one", lambda *_: pytest.fail("point by point"))
    for scale in (1.0, 8.0, 14.0):
        grid_nll(logits(7, 16, 3000, scale, 2.0), torch.arange(16), PAPER)
