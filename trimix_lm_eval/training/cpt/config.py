"""What a run of ``trimix cpt`` was asked for: YAML in, checked and typed values out.

Defaults are the recipe of the paper's Llama 2 checkpoints (Tao et al. 2024): learning rate 3e-5,
cosine to 1e-6, batches of a million tokens in rows of 2,048, four rows of the language for one of
English. What it leaves open (warm-up, weight decay, clipping) is chosen here. No file but the YAML
is looked at, so that a mistake in it costs no time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from trimix_lm_eval.loading.settings import DEMO
from trimix_lm_eval.training.cpt import values
from trimix_lm_eval.training.cpt.values import TextPlace, read_places
from trimix_lm_eval.utils import paths, yaml_files
from trimix_lm_eval.utils.errors import TrimixError, unknown
from trimix_lm_eval.utils.options import (
    REQUIRED,
    checked,
    number_option,
    option,
    options_of,
    truth_option,
    whole_option,
    word_option,
)
from trimix_lm_eval.utils.validation import number, texts

REPORTERS = ("tensorboard", "wandb")

#: What may change between two runs into one folder: the weights do not depend on it.
FREE = ("license", "report_to", "micro_batch", "gradient_checkpointing")


def _reporters(key: str, value: Any) -> tuple[str, ...]:
    names = texts(key, value, f"write some of {', '.join(REPORTERS)}")
    if names == ("none",):
        return ()
    for name in names:
        if name not in REPORTERS:
            raise unknown(key, name, (*REPORTERS, "none"))
    return names


@dataclass(frozen=True)
class Config:
    """What a run of ``trimix cpt`` is asked for; each field is a key of the YAML."""

    base: str = option(
        REQUIRED,
        "Hub id or folder",
        "The model to go on from; `demo` is the shipped small_base.",
        values.text,
    )
    output: Path = option(
        REQUIRED,
        "folder",
        "Gets the trained model; what it was made from lies in its subfolder `cpt`.",
        values.absolute,
    )
    text: tuple[TextPlace, ...] = option(
        REQUIRED,
        "files, folders, patterns, data sets",
        "Text in the language: paths, or mappings such as `{hub: owner/name, config: ug}` and "
        "`{file: rows.jsonl, field: content}`.",
        read_places,
    )
    base_revision: str = option(
        "main", "text", "Branch, tag or commit of the base.", values.revision
    )
    language: str = option(
        "",
        "text",
        "A code such as `swh_Latn`: tells which script to expect, and the card.",
        values.text,
    )
    license: str = option("", "text", "Of the text, for the card.", values.text)
    text_field: str = option(
        "text", "text", "Column of JSONL, Parquet and the Hub that holds the text.", values.text
    )
    held_out: float | Path = option(
        0.05,
        "number from 1e-06 to 0.5, or file",
        "Share of the documents, or a file of them, whose bits per byte decide which checkpoint "
        "is kept and when training stops.",
        values.share_or_file,
    )
    test: Path | None = option(
        None,
        "file",
        "Is not trained on and decides nothing: measured before and after.",
        values.path,
    )
    english: tuple[TextPlace, ...] = option((), "as `text`", "Mixed into the text.", read_places)
    ratio: Fraction = option(
        Fraction(4),
        "number from 0.01 to 100, or `4:1`",
        "Rows of the language for one of English.",
        values.ratio,
    )
    max_bytes: int | None = whole_option(
        None, "Read no more of the text than this; all of it, unless given.", least=1, most=10**15
    )
    deduplicate: bool = truth_option(True, "Whether lines that are there already are dropped.")
    nfc: bool = truth_option(False, "Whether training text is normalised to NFC.")
    sequence_length: int = whole_option(
        2048, "Tokens per row, if the model's context allows.", least=8, most=10**7
    )
    batch_tokens: int = whole_option(
        2**20, "Tokens per optimizer step, over all processes.", least=8, most=10**10
    )
    micro_batch: int = whole_option(
        8, "Most rows per forward pass on one device.", least=1, most=10**5
    )
    epochs: float = number_option(1.0, "How often the text is read.", least=1e-6, most=1e6)
    steps: int | None = whole_option(
        None, "Optimizer steps; given, they take the place of `epochs`.", least=1, most=10**9
    )
    learning_rate: float = option(
        3e-5,
        "number up to 1",
        "The learning rate at its peak.",
        partial(number, least=1e-12, most=1.0),  # the cosine's end is a share of it
    )
    min_learning_rate: float = number_option(1e-6, "Where the cosine ends.", least=0.0, most=1.0)
    warmup: float = number_option(
        0.01, "Share of the steps in which the learning rate rises.", least=0.0, most=1.0
    )
    weight_decay: float = number_option(0.1, "Of AdamW.", least=0.0, most=10.0)
    lora_rank: int = whole_option(
        0,
        "Of adapters that are trained in place of the weights; 0 trains the weights.",
        least=0,
        most=10**5,
    )
    lora_alpha: int | None = whole_option(
        None, "Scale of the adapters; twice their rank, unless given.", least=1, most=10**6
    )
    precision: str = word_option(
        "auto", "Of the arithmetic; `auto` is bf16 on GPUs that have it.", ("auto", "bf16", "fp32")
    )
    gradient_checkpointing: bool | None = truth_option(
        None, "Less memory for a third more time; true where there is a GPU, unless given."
    )
    dtype: str = word_option(
        "auto",
        "Of the saved weights; `auto` is the base's.",
        ("auto", "float32", "bfloat16", "float16"),
    )
    evaluations: int = whole_option(
        20, "How often held-out text is measured and a checkpoint written.", least=1, most=10**6
    )
    patience: int = whole_option(
        5,
        "Stop after so many evaluations that are no better than the best; 0 never does.",
        least=0,
        most=10**6,
    )
    report_to: tuple[str, ...] = option(
        (), f"some of {', '.join(f'`{one}`' for one in REPORTERS)}", "Who logs the run.", _reporters
    )
    seed: int = whole_option(1234, "Of everything that is drawn.", least=0, most=2**32 - 1)
    trust_remote_code: bool = truth_option(
        False, "Whether code from the base's repository may run."
    )

    @property
    def work(self) -> Path:
        """Folder of what the model was made from."""
        return self.output / "cpt"

    @property
    def base_path(self) -> str:
        """The base's Hub id or folder."""
        return str(paths.demo_dir() / "small_base") if self.base == DEMO else self.base

    def plain(self) -> dict[str, Any]:
        """The config as YAML and JSON can hold it, defaults included."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def identity(self) -> dict[str, Any]:
        """Of `plain`, what the weights depend on."""
        return {key: value for key, value in self.plain().items() if key not in FREE}


#: The keys of the YAML.
OPTIONS = options_of(Config)


def read(given: str | Path | Mapping[str, Any]) -> Config:
    """Read a config, or the YAML file of one; no other file is looked at.

    Raises:
        TrimixError: Something in it is missing, unknown, or not what it should be.
    """
    content = dict(given) if isinstance(given, Mapping) else yaml_files.read_yaml(Path(given))
    try:
        repr(content)
    except ValueError as error:  # of a hexadecimal number, which YAML reads at any length
        raise TrimixError(
            "The config has a number of thousands of digits.", "give a smaller one"
        ) from error
    accepted = [one.name for one in OPTIONS]
    for key in content:
        if key not in accepted:
            raise unknown("key in the config", str(key), accepted)
    for key, example in (("base", "demo"), ("output", "small_cpt"), ("text", "[corpus.txt]")):
        if content.get(key) in (None, "", []):
            raise TrimixError(f"The config names no {key}.", f"add e.g. {key}: {example}")
    given = {key: value for key, value in content.items() if value is not None and value != ""}
    config = Config(**checked(OPTIONS, given))
    if config.min_learning_rate > config.learning_rate:
        raise TrimixError(
            f"min_learning_rate is {config.min_learning_rate:g}, more than learning_rate "
            f"({config.learning_rate:g}), from which it is reached.",
            "make it smaller",
        )
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, TextPlace):  # before tuples, for it is one
        return value.plain()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else str(value)
    return str(value) if isinstance(value, Path) else value
