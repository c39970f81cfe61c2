"""From text to files: read it, keep some for testing, choose what suits it, write."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trimix_lm_eval.loading import run_config
from trimix_lm_eval.loading.preflight import memory
from trimix_lm_eval.loading.settings import DEMO
from trimix_lm_eval.tasklib import flores
from trimix_lm_eval.tasklib.flores import Language
from trimix_lm_eval.training.cpt import base as bases
from trimix_lm_eval.training.cpt import config as configs
from trimix_lm_eval.training.cpt import corpus, holdout, texts, values
from trimix_lm_eval.training.cpt.base import Base
from trimix_lm_eval.training.cpt.cleaning import Cleaner
from trimix_lm_eval.training.new_language import skeleton
from trimix_lm_eval.training.new_language.recipe import suited
from trimix_lm_eval.utils import io, outputs
from trimix_lm_eval.utils.errors import TrimixError

#: Documents that are kept for testing: a share, but enough for a report to test differences.
_SHARE, _LEAST = 0.1, 20
_SEED = 1234
#: Bytes of text whose tokens are counted; the rest is taken to be like it.
_SAMPLE = 2_000_000
#: What lies in the folder after this and the commands it prints, and may look like text.
_MADE = ("test.jsonl", "small_cpt", "results", "report", "runs")


class NewLanguageArguments(NamedTuple):
    """What ``trimix new-language`` is given, under the names of its options.

    Without ``large`` the base has to have one of its own, as the demo has; ``output`` is the code
    by default, and ``name`` that of FLORES-200, or the code.
    """

    code: str
    text: Sequence[str]
    base: str = DEMO
    large: str | None = None
    output: Path | None = None
    name: str | None = None
    english: Sequence[str] = ()
    text_field: str = "text"
    license: str = ""
    force: bool = False


def main(asked: NewLanguageArguments) -> int:
    """``trimix new-language``: write the files, and say what to do with them; returns 0."""
    folder, written = write(asked)
    relative = _shown(folder)
    print(*(f"wrote {os.path.join(relative, name)}" for name in written), sep="\n")
    shown = shlex.quote(relative)
    print("\nNow:\n")
    print(f"trimix cpt {shown}/cpt.yaml")
    print(f"trimix sweep {shown}/sweep.yaml")
    print(f"trimix report {shown}/results --output {shown}/report")
    if "benchmarks.yaml" in written:
        print(f"\nWith the Hub, before the report: trimix sweep {shown}/benchmarks.yaml")
    if asked.base == DEMO:
        print(
            "\nThe demo's models are toys. For a model of use: --base Qwen/Qwen2.5-1.5B --large "
            "Qwen/Qwen2.5-7B-Instruct, and a GPU."
        )
    return 0


def _shown(folder: Path) -> str:
    """A folder as seen from the current one, if that is still there."""
    try:
        return os.path.relpath(folder)
    except OSError:
        return str(folder)


def write(asked: NewLanguageArguments) -> tuple[Path, list[str]]:
    """Write the files, or none if something is wrong that the user can fix.

    Returns:
        The folder, and the names of the files in it.
    """
    language = _language(asked)
    for key, given in (("--large", asked.large), ("--license", asked.license)):
        if given:
            values.text(key, given)
    folder = values.absolute("--output", str(asked.output or asked.code))
    config = configs.read(
        {
            "base": asked.base,
            "output": str(folder / "small_cpt"),
            "text": list(asked.text),
            "text_field": asked.text_field,
            "language": asked.code,
        }
    )
    large = _large(asked)
    base = bases.find(config)
    made = [folder / name for name in _MADE]
    english = texts.sources(
        values.read_places("--english", list(asked.english)), config.text_field, "--english", made
    )
    found = texts.sources(config.text, config.text_field, "--text", made)
    documents, tokens = _read(found, base, asked.code)
    needs = memory.estimate(base.spec, base.config, base.files, "cpu")
    facts = skeleton.Facts(
        language,
        re.sub(r"\W", "_", asked.code),
        folder,
        _paths(found),
        config.text_field,
        _paths(english),
        asked.license,
        _local(asked.base),
        _local(large),
        suited(tokens, needs.parameters, base.context),
        tokens,
        needs.parameters,
        len(documents),
        _SEED,
    )
    files = skeleton.files(facts)
    rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    files["test.jsonl"] = "".join(rows)
    read = [(str(s.path), s.path) for s in (*found, *english) if s.path]
    outputs.keep_inputs([(name, folder / name) for name in files], read)
    _put(files, folder, asked.force)
    return folder, sorted(files)


def _language(asked: NewLanguageArguments) -> Language:
    """The language; of a code that is not known, what is said of it."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", asked.code):
        raise TrimixError(
            f"{asked.code!r} cannot be part of a task's name.",
            "give a code of letters, digits, '_' and '-', e.g. swh_Latn",
        )
    name = values.text("--name", asked.name) if asked.name else ""
    known = flores.known().get(asked.code)
    if known:
        return known._replace(name=name or known.name)
    near = ", ".join(f"{one.code} ({one.name})" for one in flores.near(asked.code))
    hint = f"; near it: {near}" if near else ""
    print(f"note: {asked.code} is not a code of FLORES-200, so no benchmark has it{hint}")
    return Language(asked.code, name or asked.code, ())


def _large(asked: NewLanguageArguments) -> str:
    """The large model."""
    if asked.large:
        return asked.large
    if asked.base == DEMO:
        return DEMO
    trios = [config["model_args"] for config in run_config.shipped().values()]
    fitting = {trio["pretrained"] for trio in trios if trio.get("small_base") == asked.base}
    of_family = f"one of {', '.join(sorted(fitting))}" if fitting else "a larger one of its family"
    raise TrimixError(
        f"No large model is named that {asked.base} could be fused with.",
        f"add --large: {of_family}",
    )


def _read(found: list[texts.Source], base: Base, code: str) -> tuple[list[str], int]:
    """The documents to be kept for testing, and about how many tokens the others have."""
    drawn = holdout.Drawn(_SEED)
    sample: list[str] = []
    sampled = 0
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        cleaner = Cleaner(nowhere, code, deduplicate=True, nfc=False)
        for document in corpus.documents(cleaner, found, "reading"):
            drawn.add(document.text)
            if sampled < _SAMPLE:
                sample.append(document.text)
                sampled += len(document.text.encode())
    if not cleaner.account.documents:
        raise corpus.no_text(cleaner.account, "--text")
    test = list(drawn.chosen(_SHARE, _LEAST).values())
    ids = base.tokenizer(sample, add_special_tokens=False)["input_ids"]
    per_byte = sum(map(len, ids)) / max(1, sampled)
    rest = cleaner.account.bytes - sum(len(text.encode()) for text in test)
    return test, round(per_byte * rest)


def _paths(found: list[texts.Source]) -> list[str]:
    """Where the files are, from wherever it is asked."""
    return [values.text("a path", str(one.path.resolve())) for one in found if one.path]


def _local(model: str) -> str:
    """A model's name; of a folder, from wherever it is used."""
    return str(Path(model).resolve()) if os.path.isdir(model) else model


def _put(made: dict[str, str], folder: Path, force: bool) -> None:
    """Write files, unless some are there: all of them, or none if anything goes wrong.

    They are written beside the folder, and moved there at once. Into a folder that is there
    already they are moved one by one.
    """
    there = [name for name in made if (folder / name).exists()]
    if there and not force:
        raise TrimixError(
            f"{folder} has {', '.join(there[:3])}{' …' if len(there) > 3 else ''} already.",
            "give another --output, or --force to write over them",
        )
    hint = "see to its permissions, or give --output"
    there_already = folder.exists()
    new = folder / ".new" if there_already else folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        for name, content in made.items():
            io.write(new / name, content, hint)
        if not there_already:
            new.rename(folder)
            return
        for name in made:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).replace(folder / name)
    except OSError as error:
        raise io.not_written(folder, error, hint) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
