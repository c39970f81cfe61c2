"""Two processes give what one gives, and nothing hangs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from contextlib import closing

import pytest

from tests.conftest import write_task
from tests.support import quick_python
from tests.support.running import ROOT, answers, evaluate, flat, model_args, program

pytestmark = pytest.mark.slow

#: On CPUs ``accelerate launch --num_processes 2`` starts one process only (accelerate 1.15, unless
#: mpirun is there); with GPUs it starts torch's launcher, which is called here by its own name.
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
#: A deadlock must fail, not hang.
SECONDS = 60
WORDS = ["the hen", "in the barn", "rivers", "སྐད་ཡིག", "x", "over there", "a rainy inn"]
#: An odd number: one process has a document more, and lm-eval pads the other.
DOCS = [
    {"q": f"{word}, number {i},", "choices": [" the end", f" {word[::-1]}", " no"], "a": i % 3}
    for i, word in enumerate(WORDS)
]
DOCS[3]["q"] = "too long to fit " * 8 + DOCS[3]["q"]
TASKS = ["choice", "rolling", "free"]
COUNTS = {"choice": 7, "rolling": 5, "free": 7}

#: Several runs in one launch; the first process writes what it got.
WORKER = """
import json, os, sys
import torch
from tests.support.running import evaluate

spec = json.loads(sys.argv[1])
got = [evaluate("trimix", spec["folder"], spec["tasks"], **run) for run in spec["runs"]]
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
assert world == 2
if rank == 0:
    keep = ("results", "samples", "config", "configs")
    with open(spec["out"], "w") as stream:
        json.dump([{k: g[k] for k in keep} for g in got], stream, default=str)
"""

#: One process ends or stops itself while the other waits for it.
VICTIM = """
import os, signal, sys, time
from trimix_lm_eval.utils import distributed, errors

errors.install_excepthook()
env = distributed.join()
distributed.wait(env.world)
if env.rank == int(sys.argv[1]):
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), int(sys.argv[2]))
distributed.exchanged("mine", env.world)
"""

#: lm-eval's own command line, without the fifteen seconds that it reads its own tasks for.
QUICK = """
import runpy, sys
from lm_eval.tasks import TaskManager

init = TaskManager.__init__

def quick(self, *args, **kwargs):
    init(self, *args, **{**kwargs, "include_defaults": False})

TaskManager.__init__ = quick
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The folder of a task of each kind."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(
        folder,
        "choice",
        DOCS,
        output_type="multiple_choice",
        doc_to_text="{{q}}",
        doc_to_choice="choices",
        doc_to_target="a",
        target_delimiter="",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    write_task(
        folder,
        "rolling",
        DOCS[:5],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{q}}",
        metric_list=[{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    )
    return write_task(
        folder,
        "free",
        DOCS,
        output_type="generate_until",
        doc_to_text="{{q}}",
        doc_to_target="{{a}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 6},
        metric_list=[{"metric": "bypass"}],
    )


def launch(tmp_path, tasks, runs, names=TASKS, fresh=False):
    """Run a list of `evaluate` arguments on two processes; fresh: as a user's launcher does."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    out = tmp_path / "out.json"
    out.unlink(missing_ok=True)
    spec = {"folder": str(tasks), "tasks": names, "runs": runs, "out": str(out)}
    words = (*LAUNCH, str(script), json.dumps(spec))
    ended = program(*words, timeout=SECONDS, fresh=fresh, PYTHONPATH=".")
    assert ended.returncode == 0 and out.exists(), ended.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(*words, **env):
    """A program that runs beside this one."""
    python = quick_python.python()
    return subprocess.Popen(
        [python, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=quick_python.environment(PYTHON_EXEC=python, PYTHONPATH=".", **env),
        cwd=ROOT,
    )


def plain(results):
    """A result as JSON gives it back: tuples are lists."""
    keep = ("results", "samples", "config", "configs")
    return json.loads(json.dumps({k: results[k] for k in keep}, default=str))


def numbers(results, task):
    found = results["results"][task].items()
    return {k: v for k, v in found if isinstance(v, (int, float)) and "stderr" not in k}


def test_two_processes_give_the_numbers_of_one(pico, tasks, tmp_path):
    """Bit for bit with a batch of one, where company cannot change rounding."""
    folders = pico("llama")
    runs = [
        {"model_args": model_args(folders, policy="ppl", batch_size=1)},
        {"model_args": model_args(folders, policy="ppl_task", batch_size=1)},
        {"model_args": model_args(folders, policy="ppl_task", batch_size=3, prompts=2)},
        {"model_args": model_args(folders, policy="gate", batch_size=1), "limit": 3},
    ]
    for number, run in enumerate(runs):
        run["model_args"]["weights_log"] = str(tmp_path / f"log{number}.jsonl")
    exact = (True, True, False, True)
    launched = launch(tmp_path, tasks, runs, fresh=True)
    for run, got, same in zip(runs, launched, exact, strict=True):
        arguments = {k: v for k, v in run["model_args"].items() if k != "weights_log"}
        want = plain(evaluate("trimix", tasks, TASKS, **{**run, "model_args": arguments}))
        for task in TASKS:
            if same:
                assert answers(got, task) == answers(want, task)
                assert numbers(got, task) == numbers(want, task)
            else:
                assert numbers(got, task) == pytest.approx(numbers(want, task), rel=1e-6)
            assert len(got["samples"][task]) == min(COUNTS[task], run.get("limit", 99))
        mine, theirs = got["config"]["trimix"], want["config"]["trimix"]
        for key in ("sources", "policy", "weights_chosen", "task_points", "max_length"):
            assert mine[key] == theirs[key], key
        if "limit" not in run:
            assert {t: sum(c.values()) for t, c in mine["weights_chosen"].items()} == COUNTS
        assert mine["truncated_requests"] == theirs["truncated_requests"]
    lines = [
        json.loads(line)
        for rank in (0, 1)
        for line in (tmp_path / f"log0_rank{rank}.jsonl").read_text().splitlines()
    ]
    assert {(x["task"], x["doc_id"]) for x in lines} == {
        (task, doc) for task in TASKS for doc in range(COUNTS[task])
    }


CACHED = ["choice", "free"]


@pytest.fixture(scope="module")
def cached(pico, tasks, tmp_path_factory):
    """The folder of the caches of two processes that have finished, and what they gave."""
    folder = tmp_path_factory.mktemp("cached")
    (whole,) = launch(folder, tasks, [cached_run(pico, folder)], CACHED)
    return folder, whole


def cached_run(pico, folder):
    arguments = model_args(pico("llama"), policy="ppl_task", batch_size=1)
    return {"model_args": arguments, "use_cache": str(folder / "cache")}


@pytest.mark.parametrize(("rank", "lost"), [(0, "answers"), (1, "answers"), (1, "file")])
def test_each_process_takes_up_its_own_cache(pico, tasks, cached, tmp_path, rank, lost):
    """One process has finished, the other has not: nobody waits for somebody who never comes."""
    folder, whole = cached
    for file in folder.glob("cache*"):
        shutil.copy(file, tmp_path)
    file = tmp_path / f"cache_rank{rank}.db"
    if lost == "file":
        file.unlink()
    else:
        with closing(sqlite3.connect(file)) as db:
            db.execute("DELETE FROM trimix WHERE key != 'fingerprint' AND key NOT LIKE '0%'")
            db.commit()
    (again,) = launch(tmp_path, tasks, [cached_run(pico, tmp_path)], CACHED)
    for task in CACHED:
        assert answers(again, task) == answers(whole, task)
        assert numbers(again, task) == numbers(whole, task)
    for key in ("weights_chosen", "task_points"):
        assert again["config"]["trimix"][key] == whole["config"]["trimix"][key]


def nodes(*words):
    """The output of a program on two nodes, each with a launcher of its own; both must succeed."""
    where = ("--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1")
    where += ("--master_port", str(free_port()))
    launch = ("-m", "torch.distributed.run", *where)
    both = [started(*launch, "--node_rank", str(node), *words) for node in (0, 1)]
    told = [one.communicate(timeout=SECONDS) for one in both]
    for one, (_, said) in zip(both, told, strict=True):
        assert one.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def alone(pico, tasks):
    """What one process gives for two tasks."""
    arguments = model_args(pico("llama"), policy="ppl")
    return plain(evaluate("trimix", tasks, ["choice", "rolling"], model_args=arguments))


@pytest.mark.parametrize("module", ["lm_eval", "trimix_lm_eval", "two nodes"])
def test_the_command_line_under_a_launcher(pico, tasks, alone, tmp_path, module):
    folders = pico("llama")
    script = tmp_path / "quick.py"
    script.write_text(QUICK, encoding="utf-8")
    arguments = model_args(folders, policy="ppl")
    device = arguments.pop("device")
    command = ["run", "--model", "trimix", "--model_args", flat(arguments), "--device", device]
    command += ["--tasks", "choice,rolling", "--include_path", str(tasks), "--batch_size", "1"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    if module == "two nodes":
        nodes(str(script), "lm_eval", *command)
    else:
        ended = program(*LAUNCH, str(script), module, *command, timeout=SECONDS)
        assert ended.returncode == 0, ended.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    got = json.loads(file.read_text(encoding="utf-8"))
    for task in ("choice", "rolling"):
        assert numbers(got, task) == pytest.approx(numbers(alone, task), rel=1e-12)
        (samples,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        assert sorted(line["doc_id"] for line in lines) == list(range(COUNTS[task]))
    assert got["config"]["trimix"]["weights_chosen"] == alone["config"]["trimix"]["weights_chosen"]


def test_an_error_of_both_processes_ends_both(pico, tasks, tmp_path):
    """A mistake in an argument is told and the launcher ends; it does not wait for anybody."""
    folders = pico("llama")
    script = tmp_path / "quick.py"
    script.write_text(QUICK, encoding="utf-8")
    arguments = {"pretrained": folders["large_ins"], "policy": "pp"}
    command = ["run", "--model", "trimix", "--model_args", flat(arguments), "--tasks", "choice"]
    command += ["--include_path", str(tasks)]
    ended = program(*LAUNCH, str(script), "lm_eval", *command, timeout=SECONDS)
    assert ended.returncode != 0
    assert "Did you mean 'ppl'" in ended.stderr, ended.stderr[-3000:]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_for_a_lost_process_names_it_in_one_line(tmp_path, rank, how):
    """Without a launcher that would end it: as on another node. The first process has the store."""
    script = tmp_path / "victim.py"
    script.write_text(VICTIM, encoding="utf-8")
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    where["TRIMIX_PROCESS_TIMEOUT"] = "2"
    words = (str(script), str(rank), str(int(how)))
    both = [started(*words, RANK=str(r), LOCAL_RANK=str(r), **where) for r in (0, 1)]
    pid = int(both[rank].stdout.readline())
    try:
        _, said = both[1 - rank].communicate(timeout=SECONDS)
    finally:
        if how == signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)
        both[rank].communicate(timeout=SECONDS)
    assert both[1 - rank].returncode == 1
    assert "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if "error: " in line]
    named = f"process 1 ({socket.gethostname()}, process id {pid})"
    assert (named if rank else "The node of process 0 of 2 (127.0.0.1)") in line
    end = "has ended or cannot be reached" if how == signal.SIGKILL else "no sign of life for 2 sec"
    assert end in line and "the same command again" in said
