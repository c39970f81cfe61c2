"""What a run was asked for: flat arguments in, checked and typed settings out.

lm-eval breaks nested ``model_args`` on the command line, so every argument is a flat scalar. A
value for one source is looked up from the most to the least specific name: ``small_cpt_dtype``,
then ``small_dtype`` (both small models), then ``dtype`` (all). No tensor and no model is touched
here, so that a mistake in an argument costs no time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.utils import paths
from trimix_lm_eval.utils.errors import TrimixError, unknown

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_QUANTIZATIONS = ("int8", "nf4")

#: The name that selects the trio shipped inside the package.
DEMO = "demo"


@dataclass(frozen=True)
class SourceSpec:
    """Where one source comes from and how it is to be loaded.

    Attributes:
        name: Its role, one of `SOURCES`.
        path: A Hub id or a local folder.
        revision: Branch, tag or commit on the Hub.
        subfolder: Folder inside the repository.
        dtype: ``auto`` (the checkpoint's), ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``cuda:1``, …; ``auto`` spreads the layers over all GPUs;
            None takes the first GPU, or the CPU where there is none.
        quantization: None, ``int8`` or ``nf4`` (bitsandbytes).
        gguf_file: A GGUF file inside the repository or folder.
        attn_implementation: As in transformers; None leaves the choice to it.
        trust_remote_code: Whether code from the repository may run.
    """

    name: str
    path: str
    revision: str = "main"
    subfolder: str = ""
    dtype: str = "auto"
    device: str | None = None
    quantization: str | None = None
    gguf_file: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False

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


@dataclass(frozen=True)
class Settings:
    """Everything a `TriMix` is built from, apart from the policy's own options.

    Attributes:
        sources: Specs by role, in the order of `SOURCES`.
        policy: Name of the weighting policy (see `policies`).
        policy_options: The policy's own options, unparsed.
        tokenizer: Hub id or folder of the tokenizer; None takes large_ins's.
        batch_size: Rows per batch, or ``"auto"``.
        max_batch_size: Where ``auto`` starts.
        max_length: Context length in tokens; None takes the smallest of the sources'.
        add_bos_token: Whether a beginning-of-sequence token is put first; None follows the
            tokenizer.
        prefix_token_id: The token before a text that has no context; None takes BOS, else EOS.
        plausibility: ``a`` of the plausibility mask, in (0, 1); None switches it off.
        plausibility_source: Whose logits the mask looks at.
        speculative: How many tokens small_cpt drafts while generating: ``auto`` (what pays),
            ``off``, or a number. Changes the time a run takes, not its texts.
        seed: Seeds the sampling of tokens and of the prompts that `ppl_task` reads.
        weights_log: JSONL file that receives the weights of every request.
        enable_thinking: Passed to the chat template.
        think_end_token: What ends the thinking part of an answer; all up to it is dropped.
    """

    sources: dict[str, SourceSpec]
    policy: str = "ppl"
    policy_options: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    batch_size: int | str = 1
    max_batch_size: int = 64
    max_length: int | None = None
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    plausibility: float | None = None
    plausibility_source: str = "large_ins"
    speculative: str | int = "auto"
    seed: int = 1234
    weights_log: str | None = None
    enable_thinking: bool | None = None
    think_end_token: str | None = None


_SPEC_FIELDS = tuple(
    f.name for f in dataclasses.fields(SourceSpec) if f.name not in ("name", "path")
)
_RUN_FIELDS = tuple(
    f.name
    for f in dataclasses.fields(Settings)
    if f.name not in ("sources", "policy", "policy_options")
)
#: Which names a per-source value may have, from the most to the least specific.
_PREFIXES = {
    "large_ins": ("large_ins_", "large_", ""),
    "large_base": ("large_base_", "large_", ""),
    "small_cpt": ("small_cpt_", "small_", ""),
    "small_base": ("small_base_", "small_", ""),
}

_ALL = tuple(dict.fromkeys(prefix for prefixes in _PREFIXES.values() for prefix in prefixes))


def parse(arguments: Mapping[str, Any]) -> Settings:
    """Turn flat arguments into settings.

    Args:
        arguments: ``pretrained`` (or ``large_ins``), ``small_cpt``, ``small_base``,
            ``large_base``, ``policy``, the policy's options, and the fields of `SourceSpec`
            (with or without a prefix) and of `Settings`.

    Raises:
        TrimixError: A name or a value is not one of those accepted.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    policy = str(given.pop("policy", "ppl"))
    options = {name: given.pop(name) for name in policies.option_names(policy) if name in given}
    sources = _sources(given)
    run = {name: given.pop(name) for name in _RUN_FIELDS if name in given}
    if given:
        raise _unknown_argument(next(iter(given)), policy)
    return _checked(Settings(sources, policy, options, **run))


def _unknown_argument(name: str, policy: str) -> TrimixError:
    """The error for a name that nothing takes; as specific as can be."""
    owners = [p for p in policies.names() if name in policies.option_names(p)]
    if owners:
        return TrimixError(
            f"{name} is an option of policy={'|'.join(owners)}, and this run has policy={policy}.",
            f"add policy={owners[0]}, or leave {name} out",
        )
    if name.replace(".", "").replace(":", "").isdigit():
        return TrimixError(
            f"{name!r} is not an argument: lm-eval splits --model_args at commas.",
            "write the points of a grid as grid=0.1:0.9;0.3:1.0",
        )
    options = policies.option_names(policy)
    prefixed = [p + f for p in _ALL for f in _SPEC_FIELDS]
    every = ["pretrained", *SOURCES, "policy", *options, *_RUN_FIELDS, *prefixed]
    near = get_close_matches(name, every, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return TrimixError(
        f"Unknown argument {name!r} (with policy={policy}).{guess}",
        f"accepted: pretrained, {', '.join([*SOURCES, 'policy', *options, *_RUN_FIELDS])}, "
        f"{', '.join(_SPEC_FIELDS)}; the last {len(_SPEC_FIELDS)} also for some sources only: "
        f"large_{_SPEC_FIELDS[3]}, small_{_SPEC_FIELDS[2]}, small_cpt_{_SPEC_FIELDS[0]} …",
    )


def _sources(given: dict[str, Any]) -> dict[str, SourceSpec]:
    """Take the sources' arguments out of ``given`` and build their specs."""
    where = {name: str(given.pop(name)) for name in SOURCES if name in given}
    if "pretrained" in given:
        if "large_ins" in where:
            raise TrimixError(
                "Both pretrained= and large_ins= are given; they mean the same model.",
                "keep one of them (lm-eval names the results folder after pretrained=)",
            )
        where["large_ins"] = str(given.pop("pretrained"))
    if "large_ins" not in where:
        raise TrimixError(
            "No large instruction-tuned model is named.",
            "add pretrained=<Hub id or folder>, or pretrained=demo for the models shipped inside",
        )
    for name, path in where.items():
        if not path:
            raise TrimixError(f"{name}= is empty.", "give a Hub id or a folder")
    _check_specs(given)
    values: dict[str, dict[str, Any]] = {name: {} for name in SOURCES}
    if where["large_ins"] == DEMO:
        for name in ("large_ins", "small_cpt", "small_base"):
            if where.get(name, DEMO) == DEMO:
                where[name] = str(paths.demo_dir() / name)
                # Shipped in fp16 to be small, and small enough to be run exactly anywhere.
                values[name]["dtype"] = "float32"
    for name in SOURCES:
        for field_name in _SPEC_FIELDS:
            for prefix in _PREFIXES[name]:
                if prefix + field_name in given:
                    values[name][field_name] = given[prefix + field_name]
                    break
    for prefix in _ALL:
        for field_name in _SPEC_FIELDS:
            given.pop(prefix + field_name, None)
    return {name: _spec(name, where[name], values[name]) for name in SOURCES if name in where}


def _check_specs(given: dict[str, Any]) -> None:
    """Check the named values that every source may have, used or not; type them in place."""
    accepted = {"dtype": _DTYPES, "quantization": _QUANTIZATIONS}
    for name in ("add_bos_token", "enable_thinking", *(p + "trust_remote_code" for p in _ALL)):
        if name in given:
            given[name] = _truth(name, given[name])
    for prefix in _ALL:
        for field_name, values in accepted.items():
            argument = prefix + field_name
            if argument in given:
                given[argument] = str(given[argument]).removeprefix("torch.")
                if given[argument] not in values:
                    raise unknown(argument, given[argument], values)


def _truth(name: str, value: Any) -> bool:
    """True or false, and nothing that merely looks like it: ``no`` must not mean yes."""
    words = {"true": True, "false": False, "1": True, "0": False}
    if str(value).lower() not in words:
        raise TrimixError(f"{name}={value!r} is neither true nor false.", f"write {name}=true")
    return words[str(value).lower()]


def _spec(name: str, path: str, values: dict[str, Any]) -> SourceSpec:
    """Build and check one source's spec."""
    if "revision" in values:
        values["revision"] = str(values["revision"])
    if values.get("device") is not None:
        values["device"] = str(values["device"])
    where = str(Path(path).expanduser()) if path.startswith("~") else path
    return SourceSpec(name, where, **values)


def _checked(settings: Settings) -> Settings:
    """Check and type the values that do not belong to a source or a policy."""
    batch: int | str = "auto"
    name, _, times = str(settings.batch_size).partition(":")
    if name != "auto" or (times and not times.replace(".", "", 1).isdecimal()):
        batch = _whole("batch_size", settings.batch_size, 1)
    a = settings.plausibility
    if a is not None:
        try:
            a = float(a)
        except (TypeError, ValueError):
            a = math.nan
        if not 0.0 < a < 1.0:
            raise TrimixError(
                f"plausibility={settings.plausibility!r} is not a fraction of the best token's "
                "probability.",
                "give a number between 0 and 1, e.g. 0.1; leave it out to switch the mask off",
            )
    if settings.plausibility_source not in SOURCES:
        raise unknown("plausibility_source", str(settings.plausibility_source), SOURCES)
    length, prefix = settings.max_length, settings.prefix_token_id
    return dataclasses.replace(
        settings,
        batch_size=batch,
        max_batch_size=_whole("max_batch_size", settings.max_batch_size, 1),
        max_length=None if length is None else _whole("max_length", length, 2),
        prefix_token_id=None if prefix is None else _whole("prefix_token_id", prefix, 0),
        speculative=_drafts(settings.speculative),
        seed=_whole("seed", settings.seed, 0),
        plausibility=a,
    )


def _drafts(value: Any) -> str | int:
    """``auto``, ``off`` or a number of drafts; the command line makes False of some spellings."""
    text = str(value).lower()
    if text in ("auto", "true"):
        return "auto"
    if text in ("off", "false", "0"):
        return "off"
    if not (text.isascii() and text.isdecimal()):
        raise TrimixError(
            f"speculative={value!r} is no way to draft.",
            "write auto, off, or a number of tokens, e.g. speculative=4",
        )
    return int(text)


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number that is large enough, or an error that names the argument."""
    text = str(value)
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        kind = "a number of rows" if "batch" in name else "such a whole number"
        auto = " or auto" if name == "batch_size" else ""
        raise TrimixError(f"{name}={value!r} is not {kind}.", f"give N >= {least}{auto}")
    return int(text)
