"""`benchmarks/launches.py` on a simulated GPU, and what its cost model makes of counts."""

from __future__ import annotations

import importlib
import json
from argparse import Namespace

import pytest

from tests.support.running import ROOT


@pytest.fixture(scope="module")
def launches():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("launches")


def test_what_it_prints(launches, capsys, monkeypatch):
    monkeypatch.setitem(launches.LARGE, "7b", ("tiny", "tiny"))
    few = ["--large", "7b", "--drafts", "4", "--batch", "16"]
    launches.main([*few, "--json"])
    hf, captured, eager = json.loads(capsys.readouterr().out)["cases"]
    assert [one["side"] for one in (hf, captured, eager)] == ["hf", "captured", "eager"]
    assert captured["launches"] <= 24 and captured["waits"] <= 1 and captured["pageable"] == 0
    assert 0 < captured["kernels_vs_hf"] <= 1 and captured["captures"] >= 2
    launches.main([*few, "--shared", "64", "--json"])
    shared = json.loads(capsys.readouterr().out)["cases"][1]
    assert shared["launches"] <= 24 and shared["waits"] <= 1 and shared["kernels_vs_hf"] <= 1.25
    assert eager["launches"] > hf["launches"] > captured["launches"]
    assert eager["captures"] == hf["captures"] == eager["kernels"] == 0


def test_the_cost_model(launches):
    how = {"launch_us": 20.0, "kernel_us": 2.0, "bandwidth": 1.0, "context": 100}
    cost = launches.Cost(Namespace(**how), "qwen2.5-1.5b+7b")
    large = cost.models["large"]
    # 7.6 G parameters but for the input embedding, and 28 layers of 4 heads of 128.
    assert large.weights == pytest.approx(2 * 7.07e9, rel=0.01)
    assert large.per_token == 2 * 2 * 28 * 4 * 128
    assert cost.bytes("large", 2, 3) == 2 * (large.weights + 3 * 100 * large.per_token)
    # 5 ms to read, 1,000 kernels of 2 us: together or one after the other; or 1,000 launches.
    graph = launches.Counts(launches=3, waits=1, pageable=0, kernels=1000)
    assert cost.of(graph, 5e9) == pytest.approx((5e-3, 7e-3))
    assert cost.of(graph._replace(launches=1000, kernels=0), 5e9) == pytest.approx((20e-3, 20e-3))
