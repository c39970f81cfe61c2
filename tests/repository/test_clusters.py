"""The commands and job files of docs/clusters.md, run as far as one machine without a GPU can.

Slurm's own commands are stand-ins: ``srun`` runs its command once a node, all of them on this
machine; ``scontrol`` knows one host, and writes down what is to be queued again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time

import pytest

from tests.support import pages, quick_python
from tests.support.pages import ROOT
from tests.support.quick_python import environment
from trimix_lm_eval.tasklib import sib200
from trimix_lm_eval.utils import heartbeat

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "clusters.md"
TOOLS = {
    "torchrun": 'exec python -m torch.distributed.run "$@"',
    "srun": """
while [ "${1#--}" != "$1" ]; do shift; done
for node in $(seq 0 $(( ${SLURM_NNODES:-1} - 1 ))); do
  SLURM_NODEID=$node "$@" & pids="$pids $!"
done
for pid in $pids; do wait "$pid" || code=$?; done
exit "${code:-0}"
""",
    "scontrol": 'case $1 in show) echo 127.0.0.1;; *) echo "$*" >> scontrol.log;; esac',
}
FILES = {block.name: block.text for block in pages.blocks(PAGE) if block.name}


@pytest.fixture
def start(tmp_path):
    """Starts a command of the page in a folder with its files."""
    programs = tmp_path / "bin"
    programs.mkdir()
    folder = tmp_path / "run"
    folder.mkdir()
    for block in pages.blocks(PAGE):
        if block.name:
            pages.put(block, folder)

    def tool(name, text):
        (programs / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (programs / name).chmod(0o755)

    for name, text in TOOLS.items():
        tool(name, text)
    path = os.pathsep.join([str(programs), str(quick_python.folder()), os.environ["PATH"]])
    more = {"PATH": path, "PYTHON_EXEC": quick_python.python(), "PYTHONPATH": str(ROOT)}
    more |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[0-1]"}

    def start(*command, tools=None, **env):
        for name, text in (tools or {}).items():
            tool(name, text)
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**more, **env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    start.folder = folder
    return start


def finished(process, code=0):
    printed, said = process.communicate(timeout=120)
    assert process.returncode == code, printed[-1000:] + said[-3000:]
    return printed


def results(folder):
    """Of the one results file in a folder."""
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text(encoding="utf-8"))


def counted(folder, task):
    """How many documents the one results file in a folder counts."""
    return results(folder)["n-samples"][task]["effective"]


def test_every_command_on_the_page_is_run_or_needs_gpus(start):
    """And files are what bash can read."""
    for name in FILES:
        finished(start("bash", "-n", name))
        assert "--gpus" not in FILES[name] or "SBATCH" in FILES[name]
    assert set(FILES) == {"share.sh", "nodes.sbatch", "array.sbatch", "scratch.sbatch"}
    assert {block.language for block in pages.blocks(PAGE)} == {"sh", "bash", "console"}


def test_the_processes_of_one_node(start):
    (block,) = pages.of_language(PAGE, "sh")
    finished(start("bash", "-euc", block))
    assert counted(start.folder / "results", "trimix_demo_finish") == 4
    assert len(list(start.folder.glob("demo_rank*.db"))) == 2


def test_a_job_on_two_nodes(start):
    words = ("nodes.sbatch", "--limit", "4", "--device", "cpu")
    finished(start("bash", *words, SLURM_NNODES="2", SLURM_GPUS_ON_NODE="1"))
    assert counted(start.folder / "nodes_results", "trimix_demo_finish") == 4
    assert len(list(start.folder.glob("nodes_cache_rank*.db"))) == 2


def write_sib200(folder):
    """As many rows as were published, of the few that are here; returns the folder."""
    (folder / "uig_Arab").mkdir(parents=True)
    for split, count in sib200._ROWS.items():
        source = ROOT / "tests" / "data" / "sib200" / "uig_Arab" / f"{split}.tsv"
        head, *rows = source.read_text(encoding="utf-8").splitlines()
        lines = [f"{i}\t{rows[i % len(rows)].partition(chr(9))[2]} {i}" for i in range(count)]
        text = "\n".join([head, *lines]) + "\n"
        (folder / "uig_Arab" / f"{split}.tsv").write_text(text, encoding="utf-8")
    return folder


def test_a_job_of_an_array(start, tmp_path):
    data = str(write_sib200(tmp_path / "data"))
    where = {"TRIMIX_DATA_DIR": data, "SLURM_ARRAY_TASK_ID": "1"}
    finished(start("bash", "array.sbatch", "--limit", "2", "--device", "cpu", **where))
    found = start.folder / "array_results" / "uig_Arab"
    assert counted(found, "trimix_sib200_uig_Arab_ll") == 2


def test_a_job_whose_cache_is_copied(start):
    words = ("bash", "scratch.sbatch", "--limit", "2", "--device", "cpu")
    finished(start(*words))
    assert counted(start.folder / "scratch_results", "trimix_demo_finish") == 2
    assert (start.folder / "kept_cache" / "demo_rank0.db").exists()


@pytest.mark.parametrize("job", ["nodes.sbatch", "scratch.sbatch"])
def test_a_job_whose_time_is_over_is_queued_again(start, job):
    """The run itself is a program that waits to be killed."""
    waits = 'echo started; [ "$1" != --version ] && exec sleep 60'
    process = start("bash", job, tools={"srun": waits, "lm_eval": waits}, SLURM_NNODES="1")
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGUSR1)
    began = time.monotonic()
    process.wait(timeout=30)
    assert time.monotonic() - began < 5
    log = (start.folder / "scontrol.log").read_text(encoding="utf-8")
    assert log == f"requeue {os.getpid()}\n"
    process.stdout.close()
    process.stderr.close()


def test_processes_that_share_a_node_see_gpus_of_their_own(start):
    for rank, seen in (("0", "0,1,2,3"), ("1", "4,5,6,7")):
        words = ("bash", "share.sh", "printenv", "CUDA_VISIBLE_DEVICES")
        told = finished(start(*words, LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2"))
        assert told.strip() == seen


def test_the_timeout_is_the_one_that_is_told():
    (told,) = re.findall(r"ends after (\d+) seconds", pages.text(PAGE))
    assert float(told) == heartbeat.limit()
