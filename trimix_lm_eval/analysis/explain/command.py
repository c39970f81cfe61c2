"""``trimix explain``: read what is asked, load the models, write a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trimix_lm_eval.analysis.explain.samples import Sample, read_run, read_sample
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.loading.run_config import model_arguments
from trimix_lm_eval.utils import io
from trimix_lm_eval.utils.errors import TrimixError

if TYPE_CHECKING:
    from trimix_lm_eval.analysis.explain.records import Explanation
    from trimix_lm_eval.engine.sampler import SamplingParams
    from trimix_lm_eval.llm import TriMix

    #: From lm-eval's generation arguments, the end-of-text string and a seed.
    ReadGenKwargs = Callable[[Mapping[str, Any], str, int], SamplingParams]

#: New tokens where nobody names a number.
_NEW_TOKENS = 64
_ELSEWHERE = "name another file"


class ExplainArguments(NamedTuple):
    """What ``trimix explain`` is given: one of `prompt`, `prompt_file` and `samples`.

    Attributes:
        model_args: As for ``lm_eval --model_args``; None takes those of the results beside the
            samples.
        prompt: A text to continue.
        prompt_file: A file with one.
        continuation: Given texts to be explained after the prompt, in place of a generated one.
        samples: A file of logged samples.
        doc: Which document of it.
        gen_kwargs: As for ``lm_eval --gen_kwargs``.
        output: The page to write.
        json: A file for the numbers; None writes none.
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
    """What is to be explained."""

    title: str
    prompt: str
    pairs: list[tuple[str, str]]
    model_args: dict[str, Any]
    sample: Sample | None
    point: Weights | None


def main(asked: ExplainArguments, read_gen_kwargs: ReadGenKwargs) -> int:
    """Explain a prompt's continuation, or a logged sample.

    Args:
        asked: The command's arguments.
        read_gen_kwargs: Reads lm-eval's generation arguments as a run would.

    Returns:
        0.

    Raises:
        TrimixError: Something is missing, or cannot be explained.
    """
    for path in filter(None, (asked.output, asked.json)):
        _writable(path)
    subject = _subject(asked)
    from trimix_lm_eval.analysis.explain import page
    from trimix_lm_eval.llm import TriMix
    from trimix_lm_eval.loading import settings

    model = TriMix.from_settings(settings.parse(subject.model_args))
    explanations = _explained(model, subject, asked, read_gen_kwargs)
    sample = subject.sample
    # The right answer to a text without a prompt is the text.
    facts = []
    if sample and not sample.whole:
        facts.append(("right answer, as logged", sample.target))
    about = page.About(subject.title, facts, model.describe())
    io.write(Path(asked.output).expanduser(), page.render(about, explanations), _ELSEWHERE)
    print(f"wrote {asked.output}")
    if asked.json:
        io.write(
            Path(asked.json).expanduser(), page.as_json(about, explanations) + "\n", _ELSEWHERE
        )
        print(f"wrote {asked.json}")
    return 0


def _subject(asked: ExplainArguments) -> _Subject:
    """Read prompt or sample; nothing heavy is loaded before these are known to be there."""
    if asked.samples is not None:
        return _logged(asked, Path(asked.samples).expanduser())
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
    return _Subject(title, prompt, pairs, model_arguments({}, asked.model_args), None, None)


def _logged(asked: ExplainArguments, path: Path) -> _Subject:
    """A document of a file of samples."""
    if asked.doc is None:
        raise TrimixError("Which document of the samples?", "add --doc N, its doc_id")
    if asked.continuation:
        raise TrimixError(
            "--continuation goes with --prompt: a logged sample has its own.", "leave it out"
        )
    sample = read_sample(path, asked.doc)
    run = read_run(path)
    if asked.model_args is None and (run is None or not run.trimix):
        raise TrimixError(
            f"No results file of a trimix run is beside {path}, and no models are named.",
            "add --model_args pretrained=…,small_cpt=…,small_base=…",
        )
    recorded = {"model_args": run.config.get("model_args")} if run else {}
    arguments = model_arguments(recorded, asked.model_args)
    # A point that was chosen for the task holds under the run's own arguments only.
    point = run.task_points.get(sample.task) if run and asked.model_args is None else None
    prompt, _ = sample.pairs[0]
    pairs = sample.pairs if sample.kwargs is None else []
    title = f"{sample.task}, document {sample.doc}"
    return _Subject(title, prompt, pairs, arguments, sample, point)


def _explained(
    model: TriMix, subject: _Subject, asked: ExplainArguments, read_gen_kwargs: ReadGenKwargs
) -> list[Explanation]:
    """Generate or take the text, and explain it."""
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
    from lm_eval.utils import simple_parse_args_string

    try:
        return dict(json.loads(text) if text.startswith("{") else simple_parse_args_string(text))
    except ValueError as error:
        raise TrimixError(
            f"--gen_kwargs cannot be read: {error}", "write max_gen_toks=64, or a JSON object"
        ) from error


def _text_of(path: str) -> str:
    """The text of a file; the newline with which editors end one is no part of it."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TrimixError(f"--prompt-file {path} cannot be read: {error}") from error


def _writable(path: str) -> None:
    """Find out before models are loaded."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise TrimixError(f"{path} is a folder.", "name a file to write")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise io.not_written(file, error, _ELSEWHERE) from error
