"""The sidecar of a run: which weights every single request got, and why its text ended."""

from __future__ import annotations

import json
from pathlib import Path

from trimix_lm_eval.engine.sequence import told
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.harness.base_lm import Identity
from trimix_lm_eval.utils.errors import TrimixError


class WeightsLog:
    """The sidecar JSONL: a line per request, appended as the request finishes.

    ``run`` (in ``stamp``) stands for everything the numbers depend on: lines of different runs in
    one file can be told apart.
    """

    def __init__(self, path: str | None, rank: int, world: int) -> None:
        self.stream = None
        self.stamp: dict[str, str] = {}
        if path:
            file = Path(path).expanduser()
            if world > 1:
                file = file.with_name(f"{file.stem}_rank{rank}{file.suffix}")
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                self.stream = file.open("a", encoding="utf-8")
            except OSError as error:
                raise TrimixError(
                    f"weights_log={path} cannot be written: {error}", "give a file that can be"
                ) from error

    def write(
        self,
        name: Identity,
        kind: str,
        choice: Choice,
        finish_reason: str | None = None,
    ) -> None:
        """Append one line.

        Args:
            name: Task, document, place among the document's requests, and number of the repeat:
                together they stand for one request, in whatever order the lines come.
            kind: Name of lm-eval's method.
            choice: The weights that were used, and what they were chosen by.
            finish_reason: Why a generated text ended, as `recorded`; None writes none.
        """
        if self.stream is None:
            return
        task, doc, idx, repeat = name
        gamma = choice.weights.gamma
        line = {
            **self.stamp,
            "task": str(task),
            "doc_id": doc or 0,
            "idx": idx,
            "repeat": repeat,
            "request": kind,
            "alpha": choice.weights.alpha,
            "beta": choice.weights.beta,
            "gamma": choice.weights.alpha if gamma is None else gamma,
            "prompt_nll": choice.nll,
            "prompt_tokens": choice.tokens,
        }
        if finish_reason is not None:
            line["finish_reason"], unfinished = told(finish_reason)
            line |= {"unfinished_thought": True} if unfinished else {}
        self.stream.write(json.dumps(line) + "\n")
        self.stream.flush()
