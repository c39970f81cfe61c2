"""What makes two runs different, and what does not."""

from __future__ import annotations

import pytest

from trimix_lm_eval.loading.provenance import compared

NOW = {
    "sources": {"large_ins": {"path": "demo/large_ins", "digest": "ab"}},
    "policy": {"name": "ppl", "grid": [[0.1, 0.9]], "refine": None, "label": "x", "differing": []},
}


@pytest.mark.parametrize(
    "before",
    [
        {**NOW, "sources": {"large_ins": {"path": "/elsewhere", "digest": "ab"}}},
        # As version 0.1.0 first recorded it: caches and sweeps of then go on.
        {**NOW, "policy": {"name": "ppl", "grid": [[0.1, 0.9]], "optimum": "grid"}},
    ],
)
def test_what_no_number_depends_on(before):
    assert list(compared(before, NOW)) == list(compared(NOW, before)) == []


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ({"name": "ppl", "grid": [[0.1, 0.9]], "optimum": "newton"}, ["policy.optimum"]),
        ({**NOW["policy"], "refine": "quadratic"}, ["policy.refine"]),
        ({**NOW["policy"], "grid": [[0.3, 0.9]], "name": "ent"}, ["policy.name", "policy.grid"]),
    ],
)
def test_what_numbers_depend_on(policy, named):
    differences = list(compared({**NOW, "policy": policy}, NOW))
    assert [line.split(" ")[0] for line in differences] == named
