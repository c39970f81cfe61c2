"""The lowest point between those of a grid, against scipy's minimum and on exact quadratics."""

from __future__ import annotations

import pytest
import torch

from trimix_lm_eval.fusion.logits import best_point, grid_nll
from trimix_lm_eval.fusion.policies import parse_grid
from trimix_lm_eval.fusion.quadratic import lowest
from trimix_lm_eval.fusion.weights import PAPER_GRID, SOURCES, Weights
from trimix_lm_eval.utils.errors import TrimixError

TRIO = SOURCES[:3]


@pytest.fixture
def minimize():
    """scipy's; without it, the tests that compare with it are passed over."""
    return pytest.importorskip("scipy.optimize").minimize


def bowl(low_a, low_b):
    """A convex function that is quadratic, and where it is lowest."""
    return lambda a, b: 3 * (a - low_a) ** 2 + 2 * (b - low_b) ** 2 + 2 * (a - low_a) * (b - low_b)


def of_grid(nll, points=PAPER_GRID):
    values = [nll(point.alpha, point.beta) for point in points]
    return lowest(points, values, min(range(len(values)), key=values.__getitem__))


@pytest.mark.parametrize(
    ("low", "found"),
    [
        ((0.3, 0.9), (0.3, 0.9)),
        ((0.24, 0.62), (0.24, 0.62)),
        ((0.97, 0.13), (0.97, 0.13)),
        ((0.04, 0.5), (0.04, 0.5)),  # below the lowest alpha of the grid
        ((0.5, 0.0), (0.5, 0.0)),
    ],
)
def test_a_quadratic_is_found_exactly(low, found):
    point, value = of_grid(bowl(*low))
    assert point[:2] == pytest.approx(found, abs=1e-6) and point.gamma is None
    assert value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("low", [(-0.4, 0.5), (0.5, 1.6), (1.5, 1.5), (-0.5, 1.5), (-1.0, -1.0)])
def test_it_never_leaves_the_unit_square(low, minimize):
    nll = bowl(*low)
    point, value = of_grid(nll)
    best = minimize(lambda x: nll(*x), [0.5, 0.5], bounds=[(0, 1)] * 2)
    assert point[:2] == pytest.approx(best.x, abs=1e-4)
    assert value == pytest.approx(best.fun, abs=1e-6)


def test_it_goes_one_step_past_the_border_of_a_grid_and_no_further():
    grid = parse_grid([(a, b) for a in (0.4, 0.5, 0.6) for b in (0.4, 0.5, 0.6)])
    point, _ = of_grid(bowl(0.0, 0.9), grid)
    assert point[:2] == pytest.approx((0.3, 0.7), abs=1e-6)


def test_of_a_grid_outside_the_unit_square_it_stays_between_the_neighbours():
    grid = parse_grid([(a, b) for a in (-1.0, 0.0, 1.0, 2.0) for b in (1.0, 1.5, 2.0)])
    assert of_grid(bowl(-0.4, 1.7), grid)[0][:2] == pytest.approx((-0.4, 1.7), abs=1e-6)
    point, _ = of_grid(bowl(3.0, -1.0), grid)
    # From the border towards the unit square one step more: 0.5 is below the lowest beta.
    assert (point.alpha, point.beta) == pytest.approx((2.0, 0.5), abs=1e-6)


def test_the_order_of_the_points_does_not_matter():
    nll = bowl(0.24, 0.62)
    assert of_grid(nll, PAPER_GRID[::-1])[0][:2] == pytest.approx(of_grid(nll)[0][:2])


def test_where_nothing_changes_the_value_is_that_of_the_grid():
    point, value = of_grid(lambda a, b: 2.5)
    assert value == pytest.approx(2.5)
    assert 0.0 <= point.alpha <= 1.0 and 0.0 <= point.beta <= 1.0


@pytest.mark.parametrize(
    "grid", ["0.1:0.9", "0.1:0.9;0.3:0.9;0.5:0.9", "0.1:0.1:0.5", "0:0;0:1;1:0;1:1"]
)
def test_points_that_are_no_grid(grid):
    with pytest.raises(TrimixError, match="all combinations of three or more") as error:
        lowest(parse_grid(grid), [0.0], 0)
    assert "leave out refine=" in str(error.value)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_near_the_minimum_and_no_further_than_the_grid(seed, minimize):
    """Texts that some weights explain, as language is by models of it."""
    generator = torch.Generator().manual_seed(seed)
    logits = [2 * torch.randn(200, 50, generator=generator) for _ in TRIO]
    alpha, beta = torch.rand(2, generator=generator).tolist()
    fused = alpha * logits[0] + beta * logits[1] + (1 - alpha - beta) * logits[2]
    targets = torch.multinomial(fused.softmax(-1), 1, generator=generator)[:, 0]

    def mean(theta):
        point = torch.tensor([Weights(*theta).vector(TRIO)])
        return float(grid_nll([x.double() for x in logits], targets, point.double()).mean())

    nll = [mean(point[:2]) for point in PAPER_GRID]
    at = best_point(torch.tensor(nll), 1, PAPER_GRID)
    point, value = lowest(PAPER_GRID, nll, at)
    best = minimize(mean, [0.5, 0.5], bounds=[(0, 1)] * 2, tol=1e-12)
    assert mean(point[:2]) == pytest.approx(best.fun, abs=1e-3), "within 0.1 % of perplexity"
    assert mean(point[:2]) <= nll[at] + 5e-4
    assert value == pytest.approx(best.fun, abs=5e-3)
