"""What a run of ``trimix cpt`` was asked for: YAML in, checked and typed values out.

Defaults are the recipe of the paper's Llama 2 checkpoints (Tao et al. 2024): learning rate 3e-5,
cosine to 1e-6, batches of a million tokens in rows of 2,048, four rows of the language for one of
English. What it leaves open (warm-up, weight decay, clipping) is chosen here. No file but the YAML
is looked at, so that a mistake in it costs no time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from trimix_lm_eval.loading.settings import DEMO
from trimix_lm_eval.training.cpt.texts import Place, read_places
from trimix_lm_eval.utils import paths
from trimix_lm_eval.utils.errors import TrimixError, unknown

REPORTERS = ("tensorboard", "wandb")

#: What may change between two runs into one folder: the weights do not depend on it.
FREE = ("license", "report_to", "micro_batch", "gradient_checkpointing")


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        base: Hub id or folder of the model to go on from; ``demo`` is the shipped small_base.
        output: Folder of the trained model; what it was made from lies in its subfolder ``cpt``.
        text: Of the language.
        base_revision: Branch, tag or commit of the base.
        language: Code such as ``swh_Latn``: tells the script to expect; for the card.
        license: Of the text, for the card.
        text_field: Column of JSONL, Parquet and the Hub that holds the text.
        held_out: Share of the documents, or a file of them (None: no share was given), whose bits
            per byte decide which checkpoint is kept and when training stops.
        test: A file that is not trained on and decides nothing: measured before and after.
        english: Mixed into the text; empty for none.
        ratio: Rows of the language for one of English.
        max_bytes: Read no more of the text; None reads all.
        deduplicate: Whether lines that are there already are dropped.
        nfc: Whether training text is normalised to NFC.
        sequence_length: Tokens per row, if the model's context allows.
        batch_tokens: Tokens per optimizer step, over all processes.
        micro_batch: Most rows per forward pass on one device.
        epochs: How often the text is read.
        steps: Optimizer steps; takes the place of ``epochs``.
        learning_rate: At its peak.
        min_learning_rate: Where the cosine ends.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: Of AdamW.
        lora_rank: Of adapters that are trained in place of the weights; 0 trains the weights.
        lora_alpha: Their scale; None is twice the rank.
        precision: Of the arithmetic: ``auto`` (bf16 on GPUs that have it), ``bf16`` or ``fp32``.
        gradient_checkpointing: Less memory for a third more time; None is where there is a GPU.
        dtype: Of the saved weights; ``auto`` is the base's.
        evaluations: How often held-out text is measured and a checkpoint written.
        patience: Stop after so many evaluations that are no better than the best; 0 never does.
        report_to: Some of `REPORTERS`.
        seed: Of everything that is drawn.
        trust_remote_code: Whether code from the base's repository may run.
    """

    base: str
    output: Path
    text: tuple[Place, ...]
    base_revision: str = "main"
    language: str = ""
    license: str = ""
    text_field: str = "text"
    held_out: float | Path = 0.05
    test: Path | None = None
    english: tuple[Place, ...] = ()
    ratio: Fraction = Fraction(4)
    max_bytes: int | None = None
    deduplicate: bool = True
    nfc: bool = False
    sequence_length: int = 2048
    batch_tokens: int = 2**20
    micro_batch: int = 8
    epochs: float = 1.0
    steps: int | None = None
    learning_rate: float = 3e-5
    min_learning_rate: float = 1e-6
    warmup: float = 0.01
    weight_decay: float = 0.1
    lora_rank: int = 0
    lora_alpha: int | None = None
    precision: str = "auto"
    gradient_checkpointing: bool | None = None
    dtype: str = "auto"
    evaluations: int = 20
    patience: int = 5
    report_to: tuple[str, ...] = ()
    seed: int = 1234
    trust_remote_code: bool = False

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


def read(given: str | Path | Mapping[str, Any]) -> Config:
    """Read a config and check all that can be checked without looking at another file.

    Args:
        given: A YAML file, or its content.

    Raises:
        TrimixError: Something in it is missing, unknown, or not what it should be.
    """
    content = dict(given) if isinstance(given, Mapping) else _load(Path(given))
    for key in content:
        if key not in _CHECKS:
            raise unknown("key in the config", str(key), _CHECKS)
    for key, example in (("base", "demo"), ("output", "small_cpt"), ("text", "[corpus.txt]")):
        if content.get(key) in (None, "", []):
            raise TrimixError(f"The config names no {key}.", f"add e.g. {key}: {example}")
    values = {
        key: _CHECKS[key](key, value)
        for key, value in content.items()
        if value is not None and value != ""
    }
    config = Config(**values)
    if config.min_learning_rate > config.learning_rate:
        raise TrimixError(
            f"min_learning_rate is {config.min_learning_rate:g}, more than learning_rate "
            f"({config.learning_rate:g}), from which it is reached.",
            "make it smaller",
        )
    return config


class _Loader(yaml.SafeLoader):
    """Reads 1:1 as it is written; YAML 1.1 takes it for a time of day, and makes 61 of it."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        """A number, or what has a colon in it."""
        text = self.construct_scalar(node)
        return text if ":" in text else super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _load(path: Path) -> dict[str, Any]:
    """The content of a YAML file."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise TrimixError(
            f"{path} cannot be read: {error.strerror}.", "correct the path"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # the latter of dates that there are not
        raise TrimixError(f"{path} is not YAML: {error}", "correct the file") from error
    if not isinstance(content, dict):
        raise TrimixError(f"{path} is no mapping.", "write lines such as `base: demo`")
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, Place):  # before tuples, for it is one
        return value.plain()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else str(value)
    return str(value) if isinstance(value, Path) else value


# --- what each key may hold -------------------------------------------------------------------

_Check = Callable[[str, Any], Any]


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TrimixError(f"{key} is {value!r}, not a text.", f"write it in quotes: {key}: '…'")
    return value


def _path(key: str, value: Any) -> Path:
    return Path(_text(key, value)).expanduser()


def _truth(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TrimixError(f"{key} is {value!r}, neither true nor false.", f"write {key}: true")
    return value


def _number(least: float, most: float = math.inf) -> _Check:
    def check(key: str, value: Any) -> float:
        try:  # not by type: YAML reads 3e-5 as a text
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not least <= number <= most or math.isinf(number):
            limit = f"from {least:g} to {most:g}" if most < math.inf else f">= {least:g}"
            raise TrimixError(f"{key} is {value!r}.", f"give a number {limit}")
        return number

    return check


def _whole(least: int, most: float = math.inf) -> _Check:
    def check(key: str, value: Any) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            limit = f"from {least} to {most}" if most < math.inf else f">= {least}"
            raise TrimixError(f"{key} is {value!r}.", f"give a whole number {limit}")
        return value

    return check


def _one_of(*accepted: str) -> _Check:
    def check(key: str, value: Any) -> str:
        if value not in accepted:
            raise unknown(key, str(value), accepted)
        return str(value)

    return check


def _held_out(key: str, value: Any) -> float | Path:
    if isinstance(value, str):
        return _path(key, value)
    return float(_number(1e-6, 0.5)(key, value))


def _ratio(key: str, value: Any) -> Fraction:
    """Rows of the language for one of English: 4, 0.5, 4:1."""
    wrong = TrimixError(
        f"{key} is {value!r}.",
        "give the rows of the language for one of English, from 0.01 to 100: 4, or 4:1",
    )
    first, _, second = str(value).partition(":")
    try:
        ratio = Fraction(first) / Fraction(second or "1")
    except (ValueError, ZeroDivisionError) as error:
        raise wrong from error
    if isinstance(value, bool) or not Fraction(1, 100) <= ratio <= 100:
        raise wrong
    return ratio


def _reporters(key: str, value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if names == ["none"]:
        return ()
    if not isinstance(names, list):
        raise TrimixError(f"{key} is {value!r}.", f"write some of {', '.join(REPORTERS)}")
    for name in names:
        if name not in REPORTERS:
            raise unknown(key, str(name), (*REPORTERS, "none"))
    return tuple(names)


_CHECKS: dict[str, _Check] = {
    "base": _text,
    "base_revision": lambda key, value: str(value),
    "output": lambda key, value: _path(key, value).resolve(),
    "language": _text,
    "license": _text,
    "text": read_places,
    "text_field": _text,
    "held_out": _held_out,
    "test": _path,
    "english": read_places,
    "ratio": _ratio,
    "max_bytes": _whole(1),
    "deduplicate": _truth,
    "nfc": _truth,
    "sequence_length": _whole(8),
    "batch_tokens": _whole(8),
    "micro_batch": _whole(1),
    "epochs": _number(1e-6),
    "steps": _whole(1),
    "learning_rate": _number(1e-12, 1.0),  # the cosine's end is a share of it
    "min_learning_rate": _number(0.0, 1.0),
    "warmup": _number(0.0, 1.0),
    "weight_decay": _number(0.0),
    "lora_rank": _whole(0),
    "lora_alpha": _whole(1),
    "precision": _one_of("auto", "bf16", "fp32"),
    "gradient_checkpointing": _truth,
    "dtype": _one_of("auto", "float32", "bfloat16", "float16"),
    "evaluations": _whole(1),
    "patience": _whole(0),
    "report_to": _reporters,
    "seed": _whole(0, 2**32 - 1),
    "trust_remote_code": _truth,
}
