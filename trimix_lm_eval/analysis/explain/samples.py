"""One logged sample of lm-eval, read back as what is to be explained.

lm-eval writes ``samples_TASK_DATE.jsonl`` beside ``results_DATE.json``. A sample has the arguments
of its requests, numbered, as text; the results have the model's arguments.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.analysis import results
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
    there = ", ".join(map(str, known[:12])) + (" …" if len(known) > 12 else "")
    raise TrimixError(f"{path} has no document {doc}.", f"it has: {there or 'none'}")


def read_run(path: Path) -> results.Run | None:
    """The results beside a file of samples; None if there are none that can be read."""
    name = _NAME.fullmatch(path.stem)
    if not name:
        return None
    runs, _ = results.read([path.with_name(f"results_{name['date']}.json")])
    return runs[0] if runs else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The samples, one after the other."""
    hint = "name a samples_….jsonl of a run with --log_samples"
    try:
        with path.open(encoding="utf-8") as stream:
            for number, text in enumerate(stream, start=1):
                if text.strip():
                    line = json.loads(text)
                    if not isinstance(line, dict):
                        raise ValueError(f"line {number} is no object")
                    yield line
    except OSError as error:
        raise TrimixError(f"{path} cannot be read: {error.strerror or error}.", hint) from error
    except (ValueError, RecursionError) as error:
        raise TrimixError(f"{path} holds no samples: {error}", hint) from error


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
    except (TypeError, ValueError, KeyError, IndexError, SyntaxError) as error:
        raise TrimixError(
            f"Document {doc} of {path} is not written as lm-eval writes samples: {error!r}",
            "give its text with --prompt",
        ) from error
    target = str(line.get("target", ""))
    if kwargs is not None:
        return Sample(task, doc, target, [(str(requests[0][0]), "")], kwargs, str(first))
    if options and all(len(request) == 2 for request in requests):
        pairs = [(str(context), str(continuation)) for context, continuation in requests]
        return Sample(task, doc, target, pairs, None, None)
    texts = [("", str(request[0])) for request in requests]
    return Sample(task, doc, target, texts, None, None, whole=True)


def _listed(given: Any, name: str) -> list[Any]:
    """A list, or what an object has under ``NAME_0``, ``NAME_1`` and so on."""
    return given if isinstance(given, list) else [given[f"{name}_{i}"] for i in range(len(given))]


def _kwargs(given: Any) -> dict[str, Any]:
    """Generation arguments, which lm-eval logs as the text of a dictionary."""
    return dict(ast.literal_eval(given) if isinstance(given, str) else given)
