"""``trimix explain``: read what is asked, load the models, write a page."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trimix_lm_eval.analysis.explain.samples import (
    Sample,
    read_run,
    read_sample,
    results_beside,
)
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.loading import recorded
from trimix_lm_eval.loading.codec import whole_characters
from trimix_lm_eval.loading.run_config import model_arguments, named_values
from trimix_lm_eval.utils import io
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.outputs import is_device, keep_inputs

if TYPE_CHECKING:
    from trimix_lm_eval.analysis.explain.records import Explanation
    from trimix_lm_eval.analysis.results import Run
    from trimix_lm_eval.engine.sampler import SamplingParams
    from trimix_lm_eval.llm import TriMix

    #: From lm-eval's generation arguments, the end-of-text string and a seed.
    ReadGenKwargs = Callable[[Mapping[str, Any], str, int], SamplingParams]

#: New tokens where nobody names a number.
_NEW_TOKENS = 64
_ELSEWHERE = "name another file"
_REPLACED = "What is no character (half a surrogate pair) was read, and is shown, as U+FFFD."


class ExplainArguments(NamedTuple):
    """What ``trimix explain`` is given: one of `prompt`, `prompt_file` and `samples`.

    ``model_args`` of None takes those of the results beside the samples that name models and say
    how their numbers come about, see `recorded`.
    """

    model_args: str | None
    prompt: str | None
    prompt_file: str | None
    continuation: Sequence[str]
    samples: str | None
    doc: int | None
    gen_kwargs: str | None
    output: str
    json: str | None


class _Subject(NamedTuple):
    """What is to be explained, in whole characters."""

    title: str
    prompt: str
    pairs: list[tuple[str, str]]
    model_args: dict[str, Any]
    sample: Sample | None = None
    point: Weights | None = None
    notes: tuple[str, ...] = ()


def main(asked: ExplainArguments, read_gen_kwargs: ReadGenKwargs) -> int:
    """Explain a prompt's continuation, or a logged sample; returns 0.

    Args:
        asked: The command's arguments.
        read_gen_kwargs: Reads lm-eval's generation arguments as a run would.

    Raises:
        TrimixError: Something is missing, or cannot be explained.
    """
    _check_places(asked)
    subject = _subject(asked)
    from trimix_lm_eval.analysis.explain import page
    from trimix_lm_eval.llm import TriMix
    from trimix_lm_eval.loading import settings
    from trimix_lm_eval.loading.sequence import ALONE

    wanted = settings.parse(subject.model_args)
    if wanted.fusion != TriMix.fusion:
        raise TrimixError(
            f"fusion={wanted.fusion} has no distribution over the next token that could be shown.",
            f"explain each source alone ({ALONE}); how each option of a question was scored is "
            "in the logged samples",
        )
    model = TriMix.from_settings(wanted)
    explanations = [
        dataclasses.replace(one, notes=(*subject.notes, *one.notes))
        for one in _explanations(model, subject, asked, read_gen_kwargs)
    ]
    sample = subject.sample
    # The right answer to a text without a prompt is the text.
    facts = [("right answer, as logged", sample.target)] if sample and not sample.whole else []
    about = page.About(subject.title, facts, model.describe())
    _write(asked.output, page.render(about, explanations))
    if asked.json:
        _write(asked.json, page.as_json(about, explanations) + "\n")
    return 0


def _check_places(asked: ExplainArguments) -> None:
    """See that what will be written can be, and takes the place of nothing that is read."""
    outputs = [("--output", _path(asked.output))]
    outputs += [("--json", _path(asked.json))] if asked.json else []
    inputs = [("--prompt-file", _path(asked.prompt_file))] if asked.prompt_file else []
    if asked.samples:
        inputs.append(("--samples", _path(asked.samples)))
        if results := results_beside(_path(asked.samples)):
            inputs.append(("the results file", results))
    keep_inputs(outputs, inputs)
    for _, path in outputs:
        io.check_place(path, _ELSEWHERE)


def _path(given: str) -> Path:
    """A path as it was given; of a user that there is not, ``~user`` is a folder's name."""
    return Path(os.path.expanduser(given))


def _write(place: str, text: str) -> None:
    """Write a file and say so; names of files may hold what is no character, too."""
    io.write(_path(place), whole_characters(text), _ELSEWHERE)
    print(f"wrote {place}")


def _subject(asked: ExplainArguments) -> _Subject:
    """Read prompt or sample; nothing heavy is loaded before these are known to be there."""
    if asked.samples is not None:
        return _logged(asked, _path(asked.samples))
    prompt = asked.prompt if asked.prompt is not None else _text_of(str(asked.prompt_file))
    if not prompt:
        raise TrimixError("The prompt is empty: there is nothing to continue.", "give some text")
    if asked.doc is not None:
        raise TrimixError("--doc names a document of --samples.", "leave it out, or give --samples")
    if asked.model_args is None:
        raise TrimixError(
            "No models are named.", "add --model_args pretrained=…,small_cpt=…,small_base=…"
        )
    pairs = [(prompt, continuation) for continuation in asked.continuation]
    title = "A given text" if pairs else "A generated text"
    return _whole(_Subject(title, prompt, pairs, model_arguments({}, asked.model_args)))


def _logged(asked: ExplainArguments, path: Path) -> _Subject:
    if asked.doc is None:
        raise TrimixError("Which document of the samples?", "add --doc N, its doc_id")
    if asked.continuation:
        raise TrimixError(
            "--continuation goes with --prompt: a logged sample has its own.", "leave it out"
        )
    sample = read_sample(path, asked.doc)
    point = None
    if asked.model_args is not None:
        arguments = model_arguments({}, asked.model_args)
    else:
        run = read_run(path)
        if run is None or not run.trimix:
            raise TrimixError(
                f"No results file of a trimix run is beside {path}, and no models are named.",
                "add --model_args pretrained=…,small_cpt=…,small_base=…",
            )
        arguments = _recorded(run)
        # A point that was chosen for the task holds under the run's own arguments only.
        point = run.task_points.get(sample.task)
    prompt, _ = sample.pairs[0]
    pairs = sample.pairs if sample.kwargs is None else []
    title = f"{sample.task}, document {sample.doc}"
    return _whole(_Subject(title, prompt, pairs, arguments, sample, point))


def _recorded(run: Run) -> dict[str, Any]:
    """The run's arguments, without those that only a user's own word can give; these are told."""
    found = recorded.read(run.config.get("model_args"), run.path.name)
    if found.left_out:
        print(
            f"left out: {', '.join(found.left_out)[:200]} of {run.path.name}, which anybody may "
            "have written; to use what you trust, give all arguments with --model_args",
            file=sys.stderr,
        )
    return found.arguments


def _whole(subject: _Subject) -> _Subject:
    """The same in whole characters, which the tokenizer is given and files can hold."""
    changed = subject._replace(
        title=whole_characters(subject.title),
        prompt=whole_characters(subject.prompt),
        pairs=[(whole_characters(a), whole_characters(b)) for a, b in subject.pairs],
    )
    return subject if changed == subject else changed._replace(notes=(_REPLACED,))


def _explanations(
    model: TriMix, subject: _Subject, asked: ExplainArguments, read_gen_kwargs: ReadGenKwargs
) -> list[Explanation]:
    from trimix_lm_eval.analysis.explain.run import explain, explain_given, explain_text
    from trimix_lm_eval.loading.codec import seed_for

    if subject.pairs:
        if asked.gen_kwargs:
            raise TrimixError("--gen_kwargs changes nothing where nothing is generated.")
        if subject.sample and subject.sample.whole:
            return [explain_text(model, text, progress=True) for _, text in subject.pairs]
        return explain_given(model, subject.pairs, subject.point, progress=True)
    sample = subject.sample
    kwargs = dict(sample.kwargs or {}) if sample else {"until": [], "max_gen_toks": _NEW_TOKENS}
    kwargs |= _parsed(asked.gen_kwargs) if asked.gen_kwargs else {}
    # As in lm.py, so that a sampled text is drawn with the noise that it was logged with.
    seed = model.settings.seed
    if sample:
        seed = seed_for(seed, sample.task, sample.doc, 0, 0)
    how = read_gen_kwargs(kwargs, model.tokenizer.decode([model.tokenizer.eos_token_id]), seed)
    found = explain(model, subject.prompt, how, subject.point, progress=True)
    if sample and sample.response is not None and found.text != sample.response:
        note = (
            "The text is not the logged one, which other models, weights, arguments or precision "
            f"have written: {sample.response!r}"
        )
        found = dataclasses.replace(found, notes=(note, *found.notes))
    return [found]


def _parsed(text: str) -> dict[str, Any]:
    """``--gen_kwargs``: JSON, or ``key=value`` joined by commas."""
    try:
        return named_values(text)
    except ValueError as error:
        raise TrimixError(
            f"--gen_kwargs cannot be read: {error}", "write max_gen_toks=64, or a JSON object"
        ) from error


def _text_of(path: str) -> str:
    """The text of a file; the newline with which editors end one is no part of it."""
    if is_device(_path(path)):
        raise TrimixError(f"--prompt-file {path} is a device.", "name a file of text")
    try:
        return _path(path).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        raise TrimixError(f"--prompt-file {path} cannot be read: {error}") from error
