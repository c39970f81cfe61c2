"""The programs of `benchmarks/` run, and their baseline is right. No time is asserted."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import quick_python
from tests.support.naive import Naive
from trimix_lm_eval.fusion.weights import PAPER_GRID, PRIOR

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
ON_EACH = ("settings", "machine")


@pytest.fixture(scope="module", autouse=True)
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


def program(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("trios"))


@pytest.fixture(scope="module")
def tiny(folder):
    with program("models").open_trio("tiny", "cpu", folder) as trio:
        yield trio


@pytest.fixture
def run(folder, tiny, capsys):
    """``run(name, *arguments)``: what a program prints as JSON, on the tiny trio."""

    def call(name: str, *arguments: object) -> dict:
        words = [str(argument) for argument in arguments]
        program(name).main(["--json", "--trio", "tiny", "--models", folder, *words])
        return json.loads(capsys.readouterr().out)

    return call


def positive(values: dict, *names: str) -> bool:
    return all(values[name] > 0 for name in names) and all(values[name] for name in ON_EACH)


SMALL = ("--rounds", 1, "--shots-tokens", 40, "--question-tokens", 12)


@pytest.mark.parametrize("option_tokens", [1, 5])
def test_scoring(run, option_tokens):
    values = run(
        "scoring", *SMALL, "--no-cases", "--questions", 3, "--option-tokens", option_tokens
    )
    assert positive(values, "ratio_vs_hf_large", "ratio_vs_released")
    assert values["max_abs_diff"] <= 1e-4
    assert values["same_choice"] is True
    # Nothing is run twice, but for the last token of a shared beginning here and there.
    assert 1.0 <= values["tokens_run_vs_distinct"] < 1.5
    assert not [key for key in values if key.startswith("tokens_run_vs_distinct_")]


MOST = {"uneven": 1.1, "options": 1.0, "contexts": 1.1, "repeated": 1.1, "task": 1.1}


def test_no_token_is_run_twice(tiny):
    """Of a random trio with many words; what is above 1 is padding."""
    cases = program("cases")
    found = {name: cases.tokens_run_vs_distinct(tiny, name) for name in cases.CASES}
    assert set(found) == set(MOST)
    assert all(1.0 <= found[name] <= most for name, most in MOST.items()), found


DECODERS = ("hf_large", "released", "released_ppl", "off")


@pytest.mark.parametrize("batch", [1, 4])
def test_decoding(run, batch):
    small = ("--rounds", 1, "--prompt-tokens", 12, "--new-tokens", 24, "--released-prompts", 2)
    values = run("decoding", *small, "--batch", batch, "--prompts", 6)
    assert positive(values, *(f"ratio_vs_{side}" for side in DECODERS))
    assert values["tokens_identical"] is True
    assert values["rows_identical_to_off"] == 1.0
    assert 0 < values["acceptance"] <= 1
    assert (values["mean_tokens"]["auto"] == 24) is (batch == 1)
    assert 0 < values["share_of_own_work"] < 1 and values["bound_vs_hf_large"] > 0
    # With one row each token takes a pass of small_cpt, and no draft takes one of the large model.
    passes = values["passes_per_token"]
    assert set(values["ms_per_pass"]) == set(passes) and passes["large_ins"] < 1
    assert passes["small_cpt"] >= 23 / 24 or batch > 1


def test_grid(run):
    values = run("grid", "--rounds", 1, "--tokens", 12, "--vocab", 1000)
    assert positive(values, "ms_per_token", "speedup_vs_released", "share_of_forward")
    assert values["max_abs_diff"] <= 1e-4
    assert values["max_abs_diff_float64"] <= 1e-4


def test_scaling(run):
    values = run("scaling", *SMALL, "--doublings", 1, "--requests", 2, "--new-tokens", 2)
    axes = program("scaling").AXES
    assert set(values) == {*axes, *ON_EACH}
    assert list(values["options"]["seconds"]) == ["2", "4"]
    assert all(set(values[a]) == {"exponent", "per_doubling", "seconds"} for a in axes)


def test_estimate(run, monkeypatch):
    from lm_eval import tasks

    init = tasks.TaskManager.__init__
    monkeypatch.setattr("trimix_lm_eval.harness.timing.MOST_SECONDS", 0.0)
    monkeypatch.setattr(  # lm-eval's own tasks take seconds to read
        tasks.TaskManager,
        "__init__",
        lambda self, **given: init(self, **{**given, "include_defaults": False}),
    )
    values = run("estimate", "--limit", 6, "--shots-tokens", 40, "--new-tokens", 2)
    assert positive(values, "seconds_real", "ratio")
    assert 0.5 < values["ratio_tokens"] < 2 and 0.5 < values["ratio_forwards"] < 2


def test_sweep(run):
    small = ("--questions", 2, "--prompts", 3, "--new-tokens", 12, "--singles", 3, "--batch", 3)
    values = run("sweep", *SMALL, *small)
    assert positive(values, "ratio_mc", "ratio_gen")
    assert values["max_abs_diff"] <= 1e-4
    assert values["texts_identical"] == 1.0
    assert 1 / 36 < values["distinct_tokens"] <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_budget(run):
    values = run("budget", "--batch", 2, "--prompt-tokens", 12, "--new-tokens", 4)
    parts = [values[f"predicted_{name}"] for name in ("weights", "caches", "logits")]
    assert values["predicted"] == pytest.approx(sum(parts), abs=2e-3)
    # What other tests have used of this process's memory before is used again: it grows by less.
    assert values["peak"] >= values["peak_loaded"] >= 0


class Parsed(Exception):
    """A program has taken its arguments."""


@pytest.mark.parametrize("trios", [[], ["tiny"]])
def test_the_arguments_of_the_script_for_gpus(trios, monkeypatch):
    """Every program takes what it is given there; on a simulated GPU the script runs as a whole."""
    done = subprocess.run(
        ["bash", FOLDER / "gpu.sh", *trios],
        env={**os.environ, "PYTHON": "echo"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    calls = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    read, seen = argparse.ArgumentParser.parse_args, []

    def parse(self, words):
        seen.append(read(self, words))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    for path, *words in calls:
        with pytest.raises(Parsed):
            program(Path(path).stem).main(words)
    assert len(seen) == len(calls) > 8
    assert all(one.device == "cuda" and one.json for one in seen)
    assert {Path(path).stem for path, *_ in calls} >= {"decoding", "launches", "scoring", "budget"}


def test_the_exponent_of_a_power_is_found():
    assert program("scaling").exponent({1: 3.0, 2: 3.0 * 2**0.7, 8: 3.0 * 8**0.7}) == pytest.approx(
        0.7
    )


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_memory(run, monkeypatch):
    for name, value in quick_python.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "executable", quick_python.python())
    values = run("memory", "--tokens", 48, "--vocab", 1024)
    assert set(values) == {"growth_chunked", "growth_whole", "mb_chunked", "mb_whole", *ON_EACH}
    assert list(values["mb_whole"]["1024"]) == ["48"]


def test_describe(run):
    values = run("describe", "--rounds", 1, "--prompt-tokens", 12, "--new-tokens", 24)
    assert positive(values, "million_parameters_large", "small_large_ratio", "distinct")
    assert 0.5 < values["agreement"] <= 1


def test_a_trio_is_built_once(tiny, folder):
    weights = Path(tiny.large_ins) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    with program("models").open_trio("tiny", "cpu", folder) as again:
        assert again == tiny
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_texts_have_the_tokens_that_were_asked_for(name, folder):
    models = program("models")
    with models.open_trio(name, "cpu", folder) as trio:
        texts = models.Texts(trio)
        tokenizer = models.AutoTokenizer.from_pretrained(trio.tokenizer)
        assert len(tokenizer.encode(" " + texts.text(30))) == 30
        options = texts.options(4, 3)
    assert len(set(options)) == 4
    assert [len(tokenizer.encode(option)) for option in options] == [3] * 4


def test_released_is_the_arithmetic_of_the_paper(tiny):
    released = program("released").Released(tiny.load(policy="ppl"))
    naive = Naive({role: getattr(tiny, role) for role in program("released").ROLES}, released.vocab)
    texts = program("models").Texts(tiny)
    prompt, option = texts.text(20), texts.options(1, 4)[0]
    ids = released.tokenizer.encode(prompt)
    points = [(p.alpha, p.beta) for p in PAPER_GRID]

    best = int(naive.grid(ids, 1, points).mean(dim=1).argmin())
    assert released.choose(prompt) == PAPER_GRID[best]

    whole = released.tokenizer.encode(prompt + option)
    fused = naive.fused(whole, PRIOR.alpha, PRIOR.beta)
    expected = -float(naive.nll(fused, whole, len(ids)).sum())
    assert released.score(prompt, option, PRIOR) == pytest.approx(expected, abs=1e-4)

    new = naive.greedy(ids, 10, PRIOR.alpha, PRIOR.beta, ends=(released.tokenizer.eos_token_id,))
    assert released.generate(prompt, 10, "", PRIOR) == released.tokenizer.decode(new)


def test_distinct_tokens_are_the_nodes_of_the_prefix_tree(tiny):
    model = tiny.load(policy="fixed")
    counting = program("counting")
    pairs = [("w1 w2 w3", " w4 w5"), ("w1 w2 w3", " w4 w6"), ("w1 w2 w3", " w7"), ("w1 w8", " w4")]
    assert counting.distinct_tokens(model, pairs) == 3 + 1 + 1  # the last of an option is not run
    with counting.counting(model) as count:
        model.loglikelihood(pairs[2:3])
    assert count.tokens == 3 * len(model.fuser.ensemble.sources)


def test_sides_take_turns():
    seen = []
    sides = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b") or "result"}
    spent, results = program("timing").alternate(sides, 2, "cpu")
    assert seen == ["a", "b", "a", "b"]
    assert results == {"a": None, "b": "result"}
    assert set(spent) == {"a", "b"}


def test_reports_are_readable_without_json(capsys):
    program("timing").report({"ratio": 0.5}, Namespace(device="cpu", json=False))
    assert capsys.readouterr().out.startswith("ratio: 0.5\n")
