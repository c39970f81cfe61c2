"""What `trimix check` says of a run beforehand, beside what the run then does.

No time is asserted: `benchmarks/estimate.py` measures it.
"""

from __future__ import annotations

import json
import re

import pytest
from lm_eval.tasks import TaskManager

from tests.support.running import model_args, spied_rows
from trimix_lm_eval import cli
from trimix_lm_eval.harness import check, estimate, requests
from trimix_lm_eval.harness.lm import TriMixLM
from trimix_lm_eval.loading import run_config, settings
from trimix_lm_eval.loading.preflight.report import check as preflight

SHARED = "The hen was in the inn near the river, and it rained. "
#: One for each kind of request; texts of one token, so that all passes are of prompts.
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "description": SHARED,
        "doc_to_text": "{{q}}",
        "doc_to_choice": ["a", " two", " something"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "inputs": {  # options that differ in what comes before, not after
        "output_type": "multiple_choice",
        "description": SHARED,
        "doc_to_text": 0,
        "doc_to_choice": ["{{q}} a", "{{q}} two", "{{q}} something"],
        "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "acc"}],
    },
    "writing": {
        "output_type": "generate_until",
        "description": SHARED,
        "doc_to_text": "{{q}}",
        "doc_to_target": "a",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 1},
        "metric_list": [{"metric": "exact_match"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}} {{q}} {{q}} {{q}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


@pytest.fixture
def run_file(tmp_path, pico, task_yaml, monkeypatch):
    """Write a run config over pico models and `TASKS`; return its path."""

    def index(folder):
        return TaskManager(
            include_path=folder, include_defaults=False, metadata={"model": "trimix"}
        )

    monkeypatch.setattr(check, "_task_manager", index)

    def write(documents=7, names=tuple(TASKS), arguments=None, **more):
        rows = [{"q": f"{'the hen ran ' * (i % 4)}no. {i}"} for i in range(documents)]
        for name in names:
            folder = task_yaml(name, rows, num_fewshot=0, **TASKS[name])
        path = tmp_path / "run.yaml"
        run = {
            "model": "trimix",
            "model_args": model_args(pico(), speculative="off", **(arguments or {})),
            "tasks": list(names),
            "include_path": str(folder),
            "batch_size": 4,
            **more,
        }
        path.write_text(json.dumps(run))
        return str(path)

    return write


def counted(path):
    """The model as it is before it is loaded, and the requests of a run."""
    run = run_config.load(path)
    config = run_config.configured(run, path)
    asked = settings.parse(run_config.model_arguments(run, None))
    unloaded = requests.Unloaded(asked, preflight(asked, check._needed(asked)))
    manager = check._task_manager(run["include_path"])
    return unloaded, requests.build(config, run["tasks"], manager, run["model_args"], unloaded)


@pytest.mark.parametrize("policy", ["fixed", "ppl", "ppl_task", "gate"])
def test_tokens_and_forwards_are_those_of_the_run(policy, run_file, monkeypatch):
    path = run_file(arguments={"policy": policy})
    unloaded, parts = counted(path)
    jobs = estimate.jobs_of(unloaded, parts)
    assert {part.kind for part in parts} == {
        "loglikelihood",
        "generate_until",
        "loglikelihood_rolling",
    }
    run = run_config.load(path)
    lm = TriMixLM(**run["model_args"], batch_size=run["batch_size"])
    for part, work, choosing in jobs:
        with spied_rows(monkeypatch) as shapes:
            getattr(lm, part.kind)(part.requests, disable_tqdm=True)
        tokens = work.tokens + (choosing.tokens if choosing else 0)
        forwards = work.forwards + (choosing.forwards if choosing else 0)
        run_tokens = sum(rows * columns for rows, columns in shapes)
        if part.kind == "generate_until":  # a new text joins when another ends: other batches
            assert tokens == pytest.approx(run_tokens, rel=0.15)
        else:
            assert (tokens, forwards) == (run_tokens, len(shapes)), part.kind
        assert (choosing is not None) == (policy == "ppl_task" and "rolling" not in part.kind)


def test_what_is_sampled_is_extrapolated_to_all_documents(run_file, monkeypatch):
    path = run_file(documents=60)
    unloaded, parts = counted(path)
    whole = [estimate.work_of(unloaded, part) for part in parts]
    monkeypatch.setattr(requests, "MOST", 24)
    unloaded, parts = counted(path)
    assert all(part.documents == 60 and len(part.seen) == 24 for part in parts)
    for part, exact in zip(parts, whole, strict=True):
        about = estimate.work_of(unloaded, part)
        assert about.requests == exact.requests
        assert about.tokens == pytest.approx(exact.tokens, rel=0.15)
        assert about.forwards == pytest.approx(exact.forwards, rel=0.4)
        assert about.new_tokens == exact.new_tokens


def test_limit_and_samples_are_the_run_s(run_file):
    _, parts = counted(run_file(limit=3, gen_kwargs={"max_gen_toks": 5}))
    assert [len(part.seen) for part in parts] == [3, 3, 3, 3]
    _, (part,) = counted(run_file(samples={"choice": [5, 1]}, names=["choice"]))
    contexts = [request.args[0] for request in part.requests]
    assert [context[-1] for context in contexts] == ["1"] * 3 + ["5"] * 3


def test_check_prints_it(run_file, capsys):
    path = run_file(gen_kwargs={"max_gen_toks": 9})
    assert cli.main(["check", "--config", path]) == 0
    out = capsys.readouterr().out
    assert re.search(r"choice loglikelihood +7 +21 +\d+ +\d+ +0 +0\n", out), out
    assert re.search(r"writing generate_until +7 +7 +\d+ +\d+ +63 +14\n", out), out
    assert re.search(r"in all +56 ", out) and "memory: about 0." in out and "time:" not in out


@pytest.mark.parametrize("policy", ["ppl", "ppl_task"])
def test_load_says_hours(policy, run_file, capsys, monkeypatch):
    monkeypatch.setattr("trimix_lm_eval.harness.timing.MOST_SECONDS", 0.0)
    monkeypatch.setattr("trimix_lm_eval.harness.timing.LEAST_SECONDS", 0.0)
    arguments = {"policy": policy}
    path = run_file(arguments=arguments, gen_kwargs={"max_gen_toks": 9})
    assert cli.main(["check", "--config", path, "--load"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"time: about \d+:\d\d:\d\d \(\d+\.\d{3} hours\)", out), out
    for part in ("loading", "choice loglikelihood", "writing generate", "rolling loglikelihood"):
        assert re.search(rf"\d+:\d\d:\d\d  {part}", out), out


def test_data_that_are_not_here_are_not_fetched(run_file, capsys, tmp_path):
    path = run_file(names=["choice"])
    (tmp_path / "choice.jsonl").unlink()
    assert cli.main(["check", "--config", path]) == 0
    assert "estimate: none" in capsys.readouterr().out
    assert cli.main(["check", "--config", path, "--load"]) == 1
    assert "The requests cannot be built" in capsys.readouterr().out


def test_load_without_tasks(pico, capsys):
    words = ",".join(f"{key}={value}" for key, value in model_args(pico()).items())
    assert cli.main(["check", "--model_args", words, "--load"]) == 1
    assert "--load times the tasks of a run" in capsys.readouterr().out
