"""One logged sample of lm-eval, read back as what is to be explained.

lm-eval writes ``samples_TASK_DATE.jsonl`` beside ``results_DATE.json``. A sample has the arguments
of its requests, numbered, as text; the results have the model's arguments.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.analysis import results
from trimix_lm_eval.analysis.results.files import json_of, text_of
from trimix_lm_eval.utils import outputs
from trimix_lm_eval.utils.errors import TrimixError

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)")


class Sample(NamedTuple):
    """A document of a run.

    Attributes:
        task: Its task.
        doc: ``doc_id``.
        target: The right answer, as it was logged.
        pairs: (context, continuation) of its options; for generation one context and no
            continuation, for the likelihood of a whole text no context.
        kwargs: ``generation_kwargs``; None where nothing is generated.
        response: What the model wrote; None where nothing is generated.
        whole: Whether the texts of `pairs` have no prompt at all, as of rolling log-likelihood.
    """

    task: str
    doc: int
    target: str
    pairs: list[tuple[str, str]]
    kwargs: dict[str, Any] | None
    response: str | None
    whole: bool = False


def read_sample(path: Path, doc: int) -> Sample:
    """Read a document from a file of logged samples.

    Raises:
        TrimixError: The file cannot be read, has no such document, or logged nothing that could
            be explained.
    """
    known = []
    for line in _lines(path):
        known.append(line.get("doc_id"))
        if line.get("doc_id") == doc:
            return _sample(path, line, doc)
    there = ", ".join(f"{one!s:.20}" for one in known[:12]) + (" …" if len(known) > 12 else "")
    raise TrimixError(f"{path} has no document {doc}.", f"it has: {there or 'none'}")


def results_beside(path: Path) -> Path | None:
    """The results file that belongs to a file of samples by its name; None if that tells none."""
    name = _NAME.fullmatch(path.stem)
    return path.with_name(f"results_{name['date']}.json") if name else None


def read_run(path: Path) -> results.Run | None:
    """The results beside a file of samples; None if there are none.

    Raises:
        TrimixError: There are some, which cannot be read.
    """
    file = results_beside(path)
    if file is None or not file.is_file():
        return None
    runs, problems = results.read([file])
    if problems:
        raise TrimixError(f"{file} {problems[0].what}.", "correct the file, or give --model_args")
    return runs[0] if runs else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The samples, one after the other."""
    hint = "name a samples_….jsonl of a run with --log_samples"
    if outputs.is_device(path):
        raise TrimixError(f"{path} is a device.", hint)
    try:
        lines = text_of(path).split("\n")
    except ValueError as error:
        raise TrimixError(f"{path!s:.200} {error}.", hint) from error
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json_of(text, with_halves=True)  # as the run was given them
        except ValueError as error:
            raise TrimixError(f"{path} holds no samples: line {number} {error}.", hint) from error
        if not isinstance(line, dict):
            raise TrimixError(f"{path} holds no samples: line {number} is no object.", hint)
        yield line


def _sample(path: Path, line: dict[str, Any], doc: int) -> Sample:
    """A logged line as requests."""
    name = _NAME.fullmatch(path.stem)
    task = name["task"] if name else path.stem.removeprefix("samples_")
    arguments, responses = line.get("arguments"), line.get("resps")
    if not arguments or not responses:
        raise TrimixError(
            f"Document {doc} of {path} has no {'arguments' if responses else 'responses'}.",
            "run the task with --log_samples; or give the text with --prompt",
        )
    try:
        requests = [_listed(one, "arg") for one in _listed(arguments, "gen_args")]
        first = responses[0][0]
        options = isinstance(first, list)  # (log-likelihood, whether greedy)
        kwargs = None if options or len(requests[0]) < 2 else _kwargs(requests[0][1])
        size = 2 if options and all(len(request) == 2 for request in requests) else 1
        texts = [[_text(part) for part in request[:size]] for request in requests]
        # Where there is no context, the whole text is what is scored.
        pairs = [
            (context, continuation) for context, continuation in (["", *t][-2:] for t in texts)
        ]
        response = None if kwargs is None else _text(first)
    except (TypeError, ValueError, LookupError, SyntaxError, MemoryError, RecursionError) as error:
        raise TrimixError(
            f"Document {doc} of {path} is not written as lm-eval writes samples: {error!r:.200}",
            "give its text with --prompt",
        ) from error
    target = f"{line.get('target', '')!s:.10000}"
    if kwargs is not None:
        return Sample(task, doc, target, [(texts[0][0], "")], kwargs, response)
    return Sample(task, doc, target, pairs, None, None, whole=size == 1)


def _listed(given: Any, name: str) -> list[Any]:
    """A list, or what an object has under ``NAME_0``, ``NAME_1`` and so on."""
    return given if isinstance(given, list) else [given[f"{name}_{i}"] for i in range(len(given))]


def _text(given: Any) -> str:
    """A text, and nothing that would have to be made one."""
    if not isinstance(given, str):
        raise TypeError(f"{given!r:.80} is no text")
    return given


def _kwargs(given: Any) -> dict[str, Any]:
    """Generation arguments, which lm-eval logs as the text of a dictionary."""
    found = dict(ast.literal_eval(given) if isinstance(given, str) else given)
    return {_text(name): value for name, value in found.items()}
