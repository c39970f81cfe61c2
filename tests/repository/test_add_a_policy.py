"""docs/add_a_policy.md's file, outside the package: run, swept, reported and exported."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.loggers import EvaluationTracker

from tests.support import pages, quick_python
from tests.support.running import environment, evaluate, instances, model_args
from tests.support.sweeping import config, make_lm_eval_quick, write_tasks
from trimix_lm_eval import TriMix
from trimix_lm_eval.analysis import export
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.harness.lm import TriMixLM
from trimix_lm_eval.sweep import sweep
from trimix_lm_eval.utils.errors import TrimixError

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "add_a_policy.md"
PLACE = "tail_policy:Tail"
LABEL = "TriMix (end of prompt)"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The page's file in a folder of its own, from which Python imports."""
    folder = tmp_path / "mine"
    folder.mkdir()
    file, _, margin = [block for block in pages.blocks(PAGE) if block.name]
    for block in (file, margin):
        pages.put(block, folder)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    yield folder
    for name in ("tail_policy", "margin_policy"):
        sys.modules.pop(name, None)


def without_the_policy(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """A command where the policy is not installed, and torch is not imported by it."""
    script = (
        "import sys; from trimix_lm_eval.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch'; "
        "assert 'tail_policy' not in sys.modules, 'tail_policy'; sys.exit(code)"
    )
    env = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_the_commands_of_the_page(installed):
    """`trimix compare`, `lm_eval` and `trimix report` as printed."""
    script = "".join(pages.of_language(PAGE, "sh"))
    paths = f"{quick_python.folder()}{os.pathsep}{os.environ['PATH']}"
    env = quick_python.environment(PATH=paths)
    done = subprocess.run(
        ["bash", "-euc", script], cwd=installed, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = (installed / "report" / "report.md").read_text(encoding="utf-8")
    assert f"{LABEL} (tokens 16)" in report
    with (installed / "compare" / "compare.csv").open(encoding="utf-8") as stream:
        found = {row["policy"]: row for row in csv.DictReader(stream)}
    assert found.keys() == {*policies.names(), "tail", "oracle by task"} - {"fixed"}
    assert found["tail"]["ranked"] == "True" and found["tail"]["gap_closed"] and found["tail"]["p"]


def test_the_policy_per_token_of_the_page(installed, trio):
    three = trio("llama")
    model = three.many([FusionConfig(policies.build("margin_policy:Margin"))])
    (score,) = model.loglikelihood([("The hen", " there")])
    prompt, target = model.codec.pair("The hen", " there")
    ids, start = [*prompt.ids, *target], len(prompt.ids)
    both = [three.naive.logits(name, ids)[start - 1 : -1] for name in ("large_ins", "small_cpt")]
    best = [x.softmax(-1).topk(2).values for x in both]
    weights = torch.stack([p[:, 0] - p[:, 1] for p in best], dim=1).softmax(1)
    fused = sum(weights[:, i, None] * x for i, x in enumerate(both))
    naive = fused.log_softmax(-1).gather(1, torch.tensor(target)[:, None]).sum()
    assert score.log_likelihood == pytest.approx(float(naive), rel=1e-5)


def test_the_three_lines_that_try_it(installed, capsys):
    (snippet,) = pages.of_language(PAGE, "python")
    exec(snippet, {})
    assert capsys.readouterr().out.rpartition("Choice(weights=Weights(alpha=")[1]


def test_the_policy_of_the_page_is_swept_reported_and_exported(
    installed, pico, tmp_path, monkeypatch
):
    make_lm_eval_quick(monkeypatch)
    tasks = write_tasks(tmp_path / "tasks", ["choice"])
    swept = [PLACE, {"policy": PLACE, "tokens": 4}, "ppl"]
    out = tmp_path / "out"
    given = config(
        pico("llama"), tasks, out, tasks=["choice"], batch_size=4, sweep={"policies": swept}
    )
    sweep(given)
    assert {f.name for f in out.iterdir() if f.is_dir()} >= {"tail", "tail_tokens=4", "ppl"}
    (path,) = (out / "tail_tokens=4").rglob("results_*.json")
    told = json.loads(path.read_text(encoding="utf-8"))["config"]["trimix"]["policy"]
    assert (told["name"], told["label"], told["honesty"]) == ("tail", LABEL, "label_free")
    assert told["differing"] == ["tokens 4"] and told["class"] == PLACE

    without_the_policy(tmp_path, "report", str(out), "--output", str(tmp_path / "report"))
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| {re.escape(LABEL)} ", text, flags=re.M), "the class's own label"
    assert f"{LABEL} (tokens 4)" in text

    (row, *_) = rows_of(export.main([path], "csv", tmp_path / "csv"))
    assert (row["policy"], row["setting"]) == ("tail", "tail (tokens 4)")
    *_, recipe = export.main([path], "card", tmp_path / "card")
    assert f"policy: {PLACE}" in recipe.read_text(encoding="utf-8")
    assert "honesty" not in recipe.read_text(encoding="utf-8")


def rows_of(files):
    (file,) = files
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def test_its_honesty_decides_whether_it_is_exported(installed, pico, tmp_path):
    """As the results file of a run by lm-eval itself records it."""
    folder = write_tasks(tmp_path / "tasks", ["choice"])
    asked = model_args(pico("llama"), policy=PLACE, tokens=8)
    results = evaluate("trimix", folder, ["choice"], model_args=asked)
    told = results["config"]["trimix"]["policy"]
    assert told["tokens"] == 8 and told["differing"] == ["tokens 8"]
    results.pop("samples")
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    tracker.save_results_aggregated(results, None)
    (path,) = (tmp_path / "out").rglob("results_*.json")
    assert rows_of(export.main([path], "csv", tmp_path / "csv"))
    for honesty, why in (("oracle", "an oracle"), (None, "not known to be honest")):
        told["honesty"] = honesty
        path.write_text(json.dumps(results, default=str), encoding="utf-8")
        with pytest.raises(TrimixError, match=f"policy tail: {why}"):
            export.main([path], "csv", tmp_path / "csv")


def test_the_weights_log_calls_it_by_its_name(installed, pico, tmp_path):
    """As that of a sweep does, and as the results file does: by where it is, neither."""
    log = tmp_path / "weights.jsonl"
    lm = TriMixLM(**model_args(pico("llama"), policy=PLACE, weights_log=str(log)))
    lm.loglikelihood(instances("loglikelihood", [("The hen went to", " x")]), disable_tqdm=True)
    (line,) = log.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["policy"] == "tail"


def test_it_chooses_by_the_end_of_the_prompt(installed, pico):
    """All tokens are ppl; with few, what lies before them has no say."""
    folders = {k: v for k, v in pico("llama").items() if k != "large_base"}
    every = TriMix.from_pretrained(**folders, policy=PLACE, tokens=1000)
    ppl = TriMix.from_pretrained(**folders, policy="ppl")
    few = TriMix.from_pretrained(**folders, policy=PLACE, tokens=3)
    pairs = [("In winter there were rivers.\n\nThen the hen", " x"), ("Q: ab the\nA:", " y")]
    whole = [score.choice.weights for score in ppl.loglikelihood(pairs)]
    assert [score.choice.weights for score in every.loglikelihood(pairs)] == whole
    assert [score.choice.weights for score in few.loglikelihood(pairs)] != whole


def test_it_may_wait_for_the_gpu_once_a_batch(installed, pico):
    """As the page's diff makes it: the same choices, of results that it never asks for itself."""
    folders = {k: v for k, v in pico("llama").items() if k != "large_base"}
    shots = "In winter there were rivers.\n\n"  # read once, for both
    pairs = [(shots + "Then the hen", " x"), (shots + "ab the\nA:", " y")]

    def chosen():
        found = []
        for tokens in (3, 1000):
            model = TriMix.from_pretrained(**folders, policy=PLACE, tokens=tokens, batch_size=2)
            found += [score.choice.weights for score in model.loglikelihood(pairs)]
        return found

    before = chosen()
    _, diff, _ = [block for block in pages.blocks(PAGE) if block.name]
    pages.put(diff, installed)
    assert ".cpu()" not in (installed / "tail_policy.py").read_text(encoding="utf-8")
    sys.modules.pop("tail_policy")
    importlib.invalidate_caches()
    assert chosen() == before
