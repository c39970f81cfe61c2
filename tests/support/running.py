"""Running lm-eval in tests: tasks without a network, the command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from tests.support import quick_python
from tests.support.quick_python import environment
from trimix_lm_eval.engine.input_batch import InputBatch

ROOT = Path(__file__).parent.parent.parent
TRIO = ("large_ins", "small_cpt", "small_base")


def model_args(folders: dict[str, str], **more: Any) -> dict[str, Any]:
    """``--model_args`` for a trio on the CPU."""
    trio = {role: folders[role] for role in TRIO[1:]}
    return {"pretrained": folders["large_ins"], **trio, "device": "cpu", **more}


def evaluate(model: Any, folder: Path, tasks: list[str], **more: Any) -> dict[str, Any]:
    """`simple_evaluate` on task YAML of a folder, samples sorted by document.

    Empty on all processes but the first.
    """
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(
        model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **more
    )
    if results is None:
        return {}
    for samples in results["samples"].values():
        samples.sort(key=lambda sample: sample["doc_id"])
    return results


def answers(results: dict[str, Any], task: str) -> list[Any]:
    """What the model answered to each document, as a flat list per document.

    lm-eval gives the last request of a process with fewer documents some more times, so that all
    have equally many; what it then gets is in the samples' ``resps``, but counts nowhere.
    """
    repeats = results["configs"][task]["repeats"]
    return [
        [answer for answers in sample["resps"] for answer in answers[:repeats]]
        for sample in results["samples"][task]
    ]


def instances(kind: str, arguments: list[tuple], task: str = "t") -> list[Instance]:
    """Requests as lm-eval makes them, one per document."""
    return [
        Instance(request_type=kind, doc={}, arguments=args, idx=0, metadata=(task, doc, 1))
        for doc, args in enumerate(arguments)
    ]


@contextmanager
def spied_rows(monkeypatch) -> Iterator[list[tuple[int, int]]]:
    """Records (rows, columns) of every forward pass of the first source."""
    shapes: list[tuple[int, int]] = []
    run = InputBatch.run

    def spy(self, which, start, wanted=None):
        if which == 0:
            rows, slots = self.table.ids.shape
            shapes.append((rows, slots - start))
        return run(self, which, start, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(InputBatch, "run", spy)
        yield shapes


def program(
    *command: str, timeout: float = 120, fresh: bool = False, **env: str
) -> subprocess.CompletedProcess:
    """Run a Python program in a process of its own; a deadlock ends in TimeoutExpired.

    Args:
        *command: What follows ``python``.
        timeout: Seconds.
        fresh: Run it as users do, with an interpreter that has imported nothing.
        **env: Further environment variables.
    """
    python = sys.executable if fresh else quick_python.python()
    return subprocess.run(
        [python, *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(PYTHON_EXEC=python, **env),
        cwd=ROOT,
    )


def flat(arguments: dict[str, Any]) -> str:
    """``--model_args`` for the command line."""
    return ",".join(f"{key}={value}" for key, value in arguments.items())
