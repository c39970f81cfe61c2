"""The sidecar of a run: which weights every single request got, and why its text ended."""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimix_lm_eval.engine.sequence import told
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.harness.base_lm import Identity
from trimix_lm_eval.loading.provenance import text_digest
from trimix_lm_eval.utils.errors import logger
from trimix_lm_eval.utils.io import not_written
from trimix_lm_eval.utils.paths import expanded

#: What to do if the log cannot be written.
_ANOTHER = "name another file as weights_log, or leave it out"


class WeightsLog:
    """The sidecar JSONL: a line per request, appended as the request finishes.

    ``run`` (in ``stamp``) stands for everything the numbers depend on: lines of different runs in
    one file can be told apart.

    A disk that fills up must not cost a run what it has finished: the log ends with its last whole
    line, which is said, and the run goes on.
    """

    def __init__(self, path: str | None, rank: int, world: int) -> None:
        self.stream: io.FileIO | None = None
        self.written = 0
        self.stamp: dict[str, str] = {}
        if path:
            file = expanded("weights_log", path)
            if world > 1:
                file = file.with_name(f"{file.stem}_rank{rank}{file.suffix}")
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                # Without a buffer: what could not be written is not tried again at the end.
                self.stream = io.FileIO(file, "a", opener=_opened)
                if _ends_within_a_line(file):
                    _append(self.stream, b"\n")
            except OSError as error:
                raise not_written(Path(path), error, _ANOTHER) from error

    def begin(self, description: Mapping[str, Any]) -> None:
        """Stamp the lines to come with their run, see `provenance.describe`."""
        run = text_digest(json.dumps(description, sort_keys=True))[:8]
        self.stamp = {"run": run, "policy": description["policy"]["name"]}

    def write(
        self, name: Identity, kind: str, choice: Choice, finish_reason: str | None = None
    ) -> None:
        """Append one line.

        Args:
            name: Stands for one request, in whatever order the lines come.
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
        try:
            _append(self.stream, f"{json.dumps(line)}\n".encode())
            self.written += 1
        except OSError as error:
            self._end(self.stream, error)

    def _end(self, stream: io.FileIO, error: OSError) -> None:
        """Stop the run if nothing could be written; else go on without the log.

        Raises:
            TrimixError: Nothing could be.
        """
        self.stream = None
        stream.close()
        refusal = not_written(Path(str(stream.name)), error, _ANOTHER)
        if not self.written:
            raise refusal from error
        told = "weights_log: %s The run goes on; the log ends after %d requests."
        logger.warning(told, refusal, self.written)


def _opened(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody reads is an error, and does not wait for a reader."""
    found = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    os.set_blocking(found, True)
    return found


def _ends_within_a_line(file: Path) -> bool:
    """Whether what is there was cut off: what is appended would be lost in the same line."""
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def _append(stream: io.FileIO, line: bytes) -> None:
    """Append a line as a whole, or leave the file as it was.

    Raises:
        OSError: It cannot be written.
    """
    regular = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    end = os.fstat(stream.fileno()).st_size
    left = line
    try:
        while left:
            left = left[stream.write(left) or 0 :]
    except OSError:
        if regular and left != line:
            os.ftruncate(stream.fileno(), end)
        raise
