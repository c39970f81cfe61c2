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
#: One for each kind of request.
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
        "doc_to_choice": "{{[q + ' a', q + ' two', q + ' something']}}",
        "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "acc"}],
    },
    "writing": {
        "output_type": "generate_until",
        "description": SHARED,
        "doc_to_text": "{{q}}",
        "doc_to_target": "a",
        "generation_kwargs": {"until": ["never"], "max_gen_toks": 6},
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

    def index(folder, names):
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
    """The model as it is before it is loaded, and what its run comes to."""
    run = run_config.load(path)
    asked = settings.parse(run_config.model_arguments(run, None))
    unloaded = requests.Unloaded([asked], preflight(asked, check._needed(asked)))
    manager = check._task_manager(run["include_path"], tuple(run["tasks"]))
    loaded = requests.load_tasks(manager, run["tasks"], {})
    tasks = requests.PreparedTasks(loaded, manager.task_index)
    parts = requests.build(run_config.configured(run, path), lambda: tasks, unloaded)
    return unloaded, estimate.jobs_of(unloaded, parts)


@pytest.mark.parametrize("policy", ["fixed", "ppl", "ent", "ppl_task", "gate"])
def test_tokens_and_forwards_are_those_of_the_run(policy, run_file, monkeypatch):
    path = run_file(arguments={"policy": policy})
    run = run_config.load(path)
    lm = TriMixLM(**run["model_args"], batch_size=run["batch_size"])
    for part, work, choosing in counted(path)[1]:
        assert (choosing is not None) == (policy == "ppl_task" and "rolling" not in part.kind)
        with spied_rows(monkeypatch) as shapes:
            getattr(lm, part.kind)(part.requests, disable_tqdm=True)
        run_tokens, run_forwards = sum(rows * columns for rows, columns in shapes), len(shapes)
        both = [work, choosing] if choosing else [work]
        tokens = sum(one.tokens + one.new_tokens for one in both)
        forwards = sum(one.forwards + one.steps for one in both)
        if part.kind == "generate_until":  # a new text joins when another ends: other batches
            assert work.new_tokens == 7 * 6
            assert run_tokens / 2 < tokens < run_tokens * 2
            assert run_forwards / 2 < forwards < run_forwards * 2
        else:
            assert (tokens, forwards) == (run_tokens, run_forwards), part.task


def test_what_is_sampled_is_extrapolated_to_all_documents(run_file, monkeypatch):
    path = run_file(documents=60)
    _, whole = counted(path)
    monkeypatch.setattr(requests, "MOST", 24)
    monkeypatch.setattr(requests, "LEAST", 24)
    _, jobs = counted(path)
    for (part, about, _), (_, exact, _) in zip(jobs, whole, strict=True):
        assert part.documents == 60 and len(part.seen) == 24
        assert (about.requests, about.new_tokens) == (exact.requests, exact.new_tokens)
        assert about.tokens == pytest.approx(exact.tokens, rel=0.15)
        assert about.forwards == pytest.approx(exact.forwards, rel=0.4)


def test_limit_and_samples_are_the_run_s(run_file):
    _, jobs = counted(run_file(limit=3))
    assert [len(job.part.seen) for job in jobs] == [3, 3, 3, 3]
    _, (job,) = counted(run_file(samples={"choice": [5, 1]}, names=["choice"]))
    contexts = [request.args[0] for request in job.part.requests]
    assert [context[-1] for context in contexts] == ["1"] * 3 + ["5"] * 3


def test_load_says_hours_and_memory(run_file, capsys, monkeypatch):
    monkeypatch.setattr("trimix_lm_eval.harness.timing.MOST_SECONDS", 0.0)
    monkeypatch.setattr("trimix_lm_eval.harness.timing.LEAST_SECONDS", 0.0)
    path = run_file(arguments={"policy": "ppl_task"}, gen_kwargs={"max_gen_toks": 9})
    assert cli.main(["check", "--config", path, "--load"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"choice loglikelihood +7 +21 +\d+ +\d+ +0 +0\n", out), out
    assert re.search(r"writing generate_until +7 +7 +\d+ +\d+ +63 +14\n", out), out
    assert re.search(r"memory: about 0\.\d+ GiB: weights ", out), out
    assert re.search(r"time: about \d+:\d\d:[\d.]+ \(\d+\.\d{3} hours\)", out), out
    assert re.search(r"large_ins +LlamaForCausalLM +keys +yes +yes +[\d.e-]+ +0\.001\n", out), out
    assert "decoding steps: 0 captured as CUDA graphs (not on a GPU)\n" in out
    for part in ("loading", "choice loglikelihood", "writing generate", "rolling loglikelihood"):
        assert re.search(rf"\d+:\d\d:[\d.]+  {part}", out), out


def test_prompts_that_will_be_cut_are_counted(run_file, capsys):
    unloaded, jobs = counted(run_file())
    needed = [
        len(prompt[0]) + len(target) - 1
        for request in jobs[0].part.requests
        for prompt, target in [unloaded.codec.pair(*request.args)]
    ]
    most = sorted(needed)[len(needed) // 2]
    path = run_file(arguments={"max_length": most})
    run = run_config.load(path)
    lm = TriMixLM(**run["model_args"], batch_size=run["batch_size"])
    known = {}
    for part, work, _ in counted(path)[1]:
        before = lm.model.truncated
        getattr(lm, part.kind)(part.requests, disable_tqdm=True)
        known[part.task] = lm.model.truncated - before
        assert work.cut == known[part.task]
    assert known["choice"] == sum(one > most for one in needed) > 0
    assert known["writing"] > 0 == known["rolling"]
    assert cli.main(["check", "--config", path]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "cut from the left" in x)
    assert line.strip().startswith(f"longer than the context length of {most} tokens")
    assert f"choice ({known['choice']} of 21)" in line and "rolling" not in line


def test_data_that_are_not_here_are_not_fetched(run_file, capsys, tmp_path):
    path = run_file(names=["choice"])
    (tmp_path / "choice.jsonl").unlink()
    assert cli.main(["check", "--config", path]) == 0
    assert "estimate: none" in capsys.readouterr().out
    assert cli.main(["check", "--config", path, "--load"]) == 1
    assert "The requests cannot be built" in capsys.readouterr().out


def test_load_without_tasks(pico, capsys):
    words = ",".join(f"{key}={value}" for key, value in model_args(pico()).items())
    assert cli.main(["check", "--model_args", words, "--load"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"small_cpt +LlamaForCausalLM +keys +yes +yes", out) and "time:" not in out
