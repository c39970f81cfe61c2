"""``trimix sweep`` as users type it: alone, interrupted, on two processes."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import yaml

from tests.support.running import program
from tests.support.sweeping import config, make_lm_eval_quick, write_tasks, written
from trimix_lm_eval.loading.provenance import compared
from trimix_lm_eval.sweep import sweep

pytestmark = pytest.mark.slow

LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
TASKS = ["choice", "choice_mutual", "rolling", "free", "drawn"]
BLOCK = {"policies": ["ppl", "ppl_task", "gate"], "grid": ["0.3:0.5"]}
#: The command without the seconds that lm-eval reads its own tasks for; dies when told to.
QUICK = """
import os, runpy, signal, sys
from torch.utils import collect_env
from lm_eval.tasks import TaskManager
from trimix_lm_eval.sweep import lm
from trimix_lm_eval.sweep.journal import Journal

bar, init, add = lm.progress_bar, TaskManager.__init__, Journal.add
again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
# The first process only: another's death would end it before it has answered anything.
left = 0 if again or os.environ.get("RANK", "0") != "0" else int(os.environ.get("DIE_AFTER", "0"))

def quick(self, *args, **kwargs):
    init(self, *args, **{**kwargs, "include_defaults": False})

def added(self, answers):
    global left
    add(self, answers)
    before, left = left, left - len(answers)
    if left <= 0 < before:
        os.kill(os.getpid(), getattr(signal, os.environ.get("DIE_OF", "SIGKILL")))

def told(*args, **options):
    if options.get("initial"):
        # All at once: print writes word by word, and two processes write here.
        os.write(2, f"a bar begins at {options['initial']}\\n".encode())
    return bar(*args, **options)

TaskManager.__init__, Journal.add, lm.progress_bar = quick, added, told
collect_env.get_pretty_env_info = lambda: "left out"
runpy.run_module("trimix_lm_eval", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def command(pico, tmp_path):
    """(config, the command's words) of a sweep."""
    given = config(
        pico("llama"),
        write_tasks(tmp_path / "tasks"),
        tmp_path / "out",
        tasks=TASKS,
        batch_size=1,
        sweep=BLOCK,
    )
    given["model_args"]["weights_log"] = str(tmp_path / "log.jsonl")
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    (tmp_path / "quick.py").write_text(QUICK, encoding="utf-8")
    return given, [str(tmp_path / "quick.py"), "sweep", str(tmp_path / "trial.yaml")]


def numbers(folder):
    """By variant: what must not depend on how often, or on how many processes, it was run."""
    found = {}
    for file in Path(folder).glob("*/*/results_*.json"):
        one = written(file)
        for name, task in one["configs"].items():
            task["metadata"].pop("weights_log")
            for sample in one["samples"][name]:
                # lm-eval hands the last request of the process with fewer documents out again.
                sample["resps"] = [repeats[: task["repeats"]] for repeats in sample["resps"]]
            one["samples"][name].sort(key=lambda sample: sample["doc_id"])
        trimix = one["config"]["trimix"]
        trimix.pop("speculation")
        found[trimix["sweep"]["variant"]] = {
            key: one[key] for key in ("results", "samples", "configs", "n-samples")
        } | {"trimix": trimix}
    return found


def test_two_processes_share_the_documents(command, tmp_path, monkeypatch):
    """Killed, taken up by two processes, killed and restarted: bit for bit what one gives."""
    given, words = command
    with monkeypatch.context() as patch:
        make_lm_eval_quick(patch)
        alone = {**given, "output_path": str(tmp_path / "alone")}
        alone["model_args"] = {**given["model_args"], "weights_log": str(tmp_path / "alone.jsonl")}
        sweep({**alone, "sweep": {**BLOCK, "name": "trial"}})
    ended = program(*words, DIE_AFTER="40")
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]
    launch = (*LAUNCH, "--max-restarts", "1")
    ended = program(*launch, *words, timeout=60, PYTHONPATH=".", DIE_AFTER="60")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("4 results below") == 1, "one process tells"
    begins = [int(at) for at in re.findall(r"a bar begins at (\d+)", ended.stderr)]
    assert max(begins) > begins[0] > 0, "each where the one before was killed"
    assert not (tmp_path / "out" / ".trial.sweep").exists()
    differences = compared(numbers(tmp_path / "alone"), numbers(tmp_path / "out"))
    assert not list(differences)
    asked = {(x["task"], x["doc_id"]) for x in _lines(tmp_path / "alone.jsonl")}
    both = [line for rank in (0, 1) for line in _lines(tmp_path / f"log_rank{rank}.jsonl")]
    assert {(x["task"], x["doc_id"]) for x in both} == asked


def _lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_interrupted_and_taken_up_again(command, tmp_path):
    _, words = command
    ended = program(*words, DIE_AFTER="40", DIE_OF="SIGINT")
    assert ended.returncode == 130, ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr
    assert ended.stderr.rstrip().endswith("interrupted; the same command goes on from here")
    ended = program(*words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    head, *_, last = ended.stdout.splitlines()
    assert head.split() == TASKS and last.startswith("4 results below")
    # A task's prompts are read, for their weights, before any is answered.
    for kind in ("weights", "loglikelihood", "loglikelihood_rolling", "generate_until", "results"):
        assert re.search(rf"\b{kind}: (\d+)/\1 \[", ended.stderr), kind


def test_errors_have_no_traceback(tmp_path):
    (tmp_path / "s.yaml").write_text("model: trimix\noutput_path: x\n", encoding="utf-8")
    ended = program("-m", "trimix_lm_eval", "sweep", str(tmp_path / "s.yaml"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: There is no `sweep:` block")


def test_a_look_at_a_sweep_loads_nothing_and_writes_nothing(command, monkeypatch, capsys, tmp_path):
    """What would be run, from small files only; and `trimix check` says who checks a sweep."""
    from trimix_lm_eval import cli, llm

    def never(*_):
        raise AssertionError("loaded")

    given, words = command
    monkeypatch.setattr(llm, "load_model", never)
    assert cli.main(["sweep", str(tmp_path / "trial.yaml"), "--check"]) == 0
    told = capsys.readouterr().out
    assert "results: 4 points and policies, 0 of them done; choice (7 documents)" in told
    assert "context: 96 tokens" in told
    assert not (tmp_path / "out").exists()
    assert cli.main(["check", "--config", str(tmp_path / "trial.yaml")]) == 1
    assert "trimix sweep" in capsys.readouterr().out
