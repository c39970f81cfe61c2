"""Where the sources come from and how each is to be loaded: their part of a run's arguments.

A value for one source is looked up from the most to the least specific name: ``small_cpt_dtype``,
then ``small_dtype`` (both small models), then ``dtype`` (all). No model is touched here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.utils import paths
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.options import (
    Option,
    option,
    options_of,
    truth_option,
    word_option,
)
from trimix_lm_eval.utils.validation import as_text, one_of

#: The name that selects the trio shipped inside the package.
DEMO = "demo"
_DEMO_SOURCES = ("large_ins", "small_cpt", "small_base")

_DTYPES = ("auto", "float32", "bfloat16", "float16")
#: Names that others use for them, to be told the one that is accepted.
_SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
_QUANTIZATIONS = ("int8", "nf4")


def _dtype(name: str, value: Any) -> str:
    """A dtype, which may be written as torch does, or be torch's own."""
    written = isinstance(value, str) or type(value).__name__ == "dtype"
    given = str(value).removeprefix("torch.") if written else value
    if written and given in _SHORT_DTYPES:
        raise TrimixError(
            f"Unknown {name} {given!r}. Did you mean {_SHORT_DTYPES[given]!r}?",
            f"accepted: {', '.join(sorted(_DTYPES))}",
        )
    return one_of(name, given, _DTYPES)


@dataclass(frozen=True)
class SourceSpec:
    """Where one source comes from and how it is to be loaded.

    Attributes:
        name: Its role, one of `SOURCES`.
        path: A Hub id or a local folder.
    """

    name: str
    path: str
    dtype: str = option(
        "auto",
        "`auto`, `float32`, `bfloat16`, `float16`",
        "Of the weights; `auto` is the checkpoint's own.",
        _dtype,
    )
    device: str | None = option(
        None,
        "`cpu`, `cuda`, `cuda:1`, …, `auto`",
        "Where the model goes: the first GPU, or the CPU where there is none, unless named here. "
        "`auto` spreads the layers over all GPUs.",
    )
    quantization: str | None = word_option(
        None, "Quantizes the weights at loading, with bitsandbytes.", _QUANTIZATIONS
    )
    revision: str = option("main", "text", "Branch, tag or commit on the Hub.")
    subfolder: str = option("", "text", "Folder inside the repository.")
    gguf_file: str | None = option(None, "text", "A GGUF file inside the repository or folder.")
    attn_implementation: str | None = option(
        None, "text", "As in transformers, which chooses where nothing is given."
    )
    trust_remote_code: bool = truth_option(False, "Whether code from the repository may run.")

    def hub_arguments(self) -> dict[str, Any]:
        """The keyword arguments that every ``from_pretrained`` takes."""
        arguments: dict[str, Any] = {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
        }
        if self.subfolder:
            arguments["subfolder"] = self.subfolder
        if self.gguf_file:
            arguments["gguf_file"] = self.gguf_file
        return arguments


#: How a source is loaded; each of these also under a prefix of `PREFIXES`.
SOURCE_OPTIONS = options_of(SourceSpec)

#: Which models there are.
MODEL_OPTIONS = (
    Option(
        "pretrained",
        "Hub id or folder",
        None,
        "The large instruction-tuned model, needed always; `demo` is the trio shipped inside, of "
        "which models that are named besides take the place of its own.",
    ),
    Option("large_ins", "Hub id or folder", None, "The same model under the name of its role."),
    Option("large_base", "Hub id or folder", None, "What it was tuned from; for γ ≠ α only."),
    Option("small_cpt", "Hub id or folder", None, "The continually pretrained small model."),
    Option("small_base", "Hub id or folder", None, "What that was trained from."),
)

#: Which names a source's value may have, from the most to the least specific.
_PREFIXES_OF = {
    "large_ins": ("large_ins_", "large_", ""),
    "large_base": ("large_base_", "large_", ""),
    "small_cpt": ("small_cpt_", "small_", ""),
    "small_base": ("small_base_", "small_", ""),
}
PREFIXES = tuple(dict.fromkeys(prefix for own in _PREFIXES_OF.values() for prefix in own))


def take_sources(given: dict[str, Any]) -> dict[str, SourceSpec]:
    """Take the sources' arguments out of all; specs by role, in the order of `SOURCES`.

    Raises:
        TrimixError: No large model is named, or a value is not one of those accepted.
    """
    where = _take_paths(given)
    values = _take_values(given)
    shipped = []
    if where["large_ins"] == DEMO:
        shipped = [name for name in _DEMO_SOURCES if where.get(name, DEMO) == DEMO]
        where |= {name: str(paths.demo_dir() / name) for name in shipped}
    specs = {}
    for name in [source for source in SOURCES if source in where]:
        own = _values_of(name, values)
        if name in shipped:
            # In fp16 to be small, and small enough to be run exactly anywhere.
            own.setdefault("dtype", "float32")
        path = where[name]
        folder = str(paths.expanded(name, path)) if path.startswith("~") else path
        specs[name] = SourceSpec(name, folder, **own)
    return specs


def _take_paths(given: dict[str, Any]) -> dict[str, str]:
    """Hub ids and folders by role."""
    where = {name: as_text(name, given.pop(name)) for name in SOURCES if name in given}
    if "pretrained" in given:
        if "large_ins" in where:
            raise TrimixError(
                "Both pretrained= and large_ins= are given; they mean the same model.",
                "keep one of them (lm-eval names the results folder after pretrained=)",
            )
        where["large_ins"] = as_text("pretrained", given.pop("pretrained"))
    if "large_ins" not in where:
        raise TrimixError(
            "No large instruction-tuned model is named.",
            "add pretrained=<Hub id or folder>, or pretrained=demo for the models shipped inside",
        )
    for name, path in where.items():
        if not path:
            raise TrimixError(f"{name}= is empty.", "give a Hub id or a folder")
    return where


def _take_values(given: dict[str, Any]) -> dict[str, Any]:
    """All values of `SOURCE_OPTIONS`, under the names that they were given; typed, used or not."""
    return {
        prefix + one.name: one.check(prefix + one.name, given.pop(prefix + one.name))
        for prefix in PREFIXES
        for one in SOURCE_OPTIONS
        if prefix + one.name in given
    }


def _values_of(source: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """One source's values: of each option the most specific that is given."""
    found: dict[str, Any] = {}
    for one in SOURCE_OPTIONS:
        for prefix in _PREFIXES_OF[source]:
            if prefix + one.name in values:
                found[one.name] = values[prefix + one.name]
                break
    return found
