"""What a run was asked for: flat arguments in, checked and typed settings out.

lm-eval breaks nested ``model_args`` on the command line, so every argument is a flat scalar. Those
of the sources are in `source_spec`, the policies' own options in their classes; the rest is here.
No tensor and no model is touched, so that a mistake in an argument costs no time.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.weights import SOURCES, Weights
from trimix_lm_eval.loading import sequence
from trimix_lm_eval.loading.source_spec import (
    DEMO,
    MODEL_OPTIONS,
    PREFIXES,
    SOURCE_OPTIONS,
    SourceSpec,
    take_sources,
)
from trimix_lm_eval.utils.errors import TrimixError, did_you_mean, quoted
from trimix_lm_eval.utils.options import (
    checked,
    option,
    options_of,
    truth_option,
    whole_option,
    word_option,
)
from trimix_lm_eval.utils.validation import as_text, number, one_of, text, whole

__all__ = ["DEMO", "RUN_OPTIONS", "SOURCE_OPTIONS", "Settings", "SourceSpec", "parse"]

#: Rows per batch for ``batch_size=auto`` on a CPU, where no out-of-memory error tells when to stop.
_AUTO_ON_CPU = 8


def _batch_size(name: str, value: Any) -> int | str:
    """A number of rows, or ``auto``; lm-eval writes ``auto:4`` for how often it measures anew."""
    first, _, times = value.partition(":") if isinstance(value, str) else ("", "", "")
    if first == "auto" and (not times or times.replace(".", "", 1).isdecimal()):
        return "auto"
    return whole(name, value, 1, hint=", or auto")


def _draft_length(name: str, value: Any) -> str | int:
    """``auto``, ``off`` or a number of tokens; command lines make False of some spellings."""
    word = value.lower() if isinstance(value, str) else value
    if word in ("auto", "true") or value is True:
        return "auto"
    if word in ("off", "false") or value is False:
        return "off"
    return whole(name, value, 0, hint=", auto or off") or "off"


def _graphs(name: str, value: Any) -> str:
    """``auto`` or ``off``, which YAML and command lines make False."""
    if value is True or value is False:
        return "auto" if value else "off"
    return one_of(name, value, ("auto", "off"))


def _token(name: str, value: Any) -> str | int:
    """The text of a token, or its id: a number, or the digits of one, as for ``hf``."""
    if isinstance(value, str) and not re.fullmatch("-?[0-9]+", value):
        if value != value.encode("utf-8", "replace").decode():
            raise TrimixError(f"{name}={quoted(value)} holds half a character.", "give a text")
        return text(name, value)
    return whole(name, value, 0, hint=", the id of a token, or a text")


@dataclass(frozen=True)
class Settings:
    """Everything a `TriMix` is built from.

    Attributes:
        sources: Specs by role, in the order of `SOURCES`.
        policy_options: The policy's own options, unparsed.
    """

    sources: dict[str, SourceSpec]
    policy: str = option("ppl", "name", "Who chooses the weights of the sources.")
    policy_options: dict[str, Any] = field(default_factory=dict)
    fusion: str = word_option(
        sequence.TOKEN,
        "`token` fuses the sources' logits at every token, for which they need one tokenizer. "
        "`sequence` sums the log-likelihoods that they give a whole text, each with its own.",
        sequence.FUSIONS,
    )
    candidates: int = whole_option(
        0,
        "With `fusion=sequence`, how many texts each source samples beside the one that it would "
        "write by itself; of all of them the one with the best score per byte is the answer.",
        least=0,
        most=1000,
    )
    tokenizer: str | None = option(
        None, "Hub id or folder", "Another tokenizer than that of the large model."
    )
    batch_size: int | str = option(
        1,
        "whole number >= 1, or `auto`",
        "Rows per forward pass; `auto` starts high on a GPU and halves when memory runs out.",
        _batch_size,
    )
    max_batch_size: int = whole_option(64, "Where `batch_size=auto` starts.", least=1)
    max_length: int | None = whole_option(
        None, "Context length in tokens: the smallest of the sources', unless given.", least=2
    )
    add_bos_token: bool | None = truth_option(
        None,
        "Whether a token for the beginning of the sequence is put first: as the tokenizer does, "
        "unless given.",
    )
    prefix_token_id: int | None = whole_option(
        None, "The token before a text that has no context: BOS, else EOS, unless given.", least=0
    )
    plausibility: float | None = option(
        None,
        "number between 0 and 1",
        "Keeps only tokens with at least this share of the best token's probability in "
        "`plausibility_source`, as `min_p` of vLLM and transformers does, but in log-likelihoods "
        "too; no token is dropped unless given.",
        partial(number, above=0, below=1, hint=", e.g. 0.1; leave it out to keep all tokens"),
    )
    plausibility_source: str = word_option(
        "large_ins", "Whose probabilities `plausibility` looks at.", SOURCES
    )
    speculative: str | int = option(
        "auto",
        "`auto`, `off`, or whole number",
        "Speculative decoding: how many tokens small_cpt drafts while generating, the other models "
        "checking all in one pass. `auto` drafts more where more are accepted. Changes the time "
        "that a run takes, not its texts.",
        _draft_length,
    )
    cuda_graphs: str = option(
        "auto",
        "`auto`, `off`",
        "On GPUs, decoding steps that are needed again are captured as CUDA graphs (`auto`), or "
        "run operation by operation (`off`). Changes the time that a run takes, not its texts. A "
        "captured step has at most 8 drafts.",
        _graphs,
    )
    seed: int = whole_option(
        1234, "Of the sampling of tokens, and of the prompts that `policy=ppl_task` reads.", least=0
    )
    weights_log: str | None = option(
        None, "file", "A JSONL file that receives the weights of every request."
    )
    enable_thinking: bool | None = truth_option(
        None,
        "Passed to the chat template if given; `true` needs `think_end_token`, and is not for "
        "log-likelihood tasks.",
    )
    think_end_token: str | int | None = option(
        None,
        "text, or the id of a token",
        "What ends the thinking part of a generated text. All up to the first one is dropped, and "
        "stop strings count behind it only; a text without it has an empty answer.",
        _token,
    )

    def fusion_config(self) -> FusionConfig:
        """What is made of the sources' logits, or of their scores.

        Raises:
            TrimixError: The policy cannot weigh the scores of whole texts, and is to.
        """
        policy = policies.build(self.policy, **self.policy_options)
        config = FusionConfig(policy, self.plausibility, self.plausibility_source)
        if self.fusion == sequence.SEQUENCE:
            sequence.check_config(config)
        return config

    def alone(self, source: str) -> Settings:
        """The same for one of the sources by itself, with its own tokenizer."""
        point = Weights.of_sources({source: 1.0})._asdict()
        return dataclasses.replace(
            self,
            sources={source: self.sources[source]},
            policy="fixed",
            policy_options={name: value for name, value in point.items() if value is not None},
            fusion=sequence.TOKEN,
            candidates=0,
        )

    def rows_per_pass(self, device: str) -> int:
        """Rows per forward pass on a type of device; ``auto`` halves when memory runs out."""
        if isinstance(self.batch_size, int):
            return self.batch_size
        return _AUTO_ON_CPU if device == "cpu" else self.max_batch_size


#: The arguments of a run that belong to no source, but for the policy and its options.
RUN_OPTIONS = tuple(one for one in options_of(Settings) if one.name != "policy")
#: The names of all arguments that every run may have, whatever its policy.
OF_EVERY_RUN = frozenset(
    [
        *(one.name for one in (*MODEL_OPTIONS, *RUN_OPTIONS)),
        *(prefix + one.name for prefix in PREFIXES for one in SOURCE_OPTIONS),
    ]
)


def parse(arguments: Mapping[str, Any]) -> Settings:
    """Turn flat arguments into settings.

    Args:
        arguments: Values by name. Names are those of `MODEL_OPTIONS`, `SOURCE_OPTIONS` (with or
            without one of `PREFIXES`), ``policy``, the policy's options and `RUN_OPTIONS`; an
            argument that is None counts as not given.

    Raises:
        TrimixError: A name or a value is not one of those accepted.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    given = policies.without_usual(given)
    policy = as_text("policy", given.pop("policy", "ppl"))
    options = {name: given.pop(name) for name in _option_names(policy) if name in given}
    sources = take_sources(given)
    run = checked(RUN_OPTIONS, given)
    sequence.check_arguments(run)
    for name in given:
        if name not in run:
            raise _unknown_argument(name, policy)
    if run.get("enable_thinking") and "think_end_token" not in run:
        raise TrimixError(
            "enable_thinking=true without think_end_token: the thinking would be taken for the "
            "answer.",
            "add think_end_token=, the text or the id of the token that ends the thinking, e.g. "
            "think_end_token=</think> for Qwen3",
        )
    return Settings(sources, policy, options, **run)


def _option_names(policy: str) -> list[str]:
    """The options of a policy.

    Raises:
        TrimixError: There is no such policy, or an argument of every run has an option's name.
    """
    names = policies.option_names(policy)
    for name in names:
        if name in OF_EVERY_RUN:
            raise TrimixError(
                f"policy={policy} has an option {name}, which is an argument of every run.",
                "give the option another name",
            )
    return names


def _unknown_argument(name: str, policy: str) -> TrimixError:
    """The error for a name that nothing takes; as specific as can be."""
    replaced = policies.replaced(name)
    if replaced:
        return replaced
    # Of this package only: a typo is no reason to import what installed packages offer.
    ours = filter(policies.ours, policies.names())
    owners = [one for one in ours if name in policies.option_names(one)]
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
    of_run = [
        *(one.name for one in MODEL_OPTIONS),
        "policy",
        *policies.option_names(policy),
        *(one.name for one in RUN_OPTIONS),
    ]
    of_sources = [one.name for one in SOURCE_OPTIONS]
    near = did_you_mean(name, [*of_run, *OF_EVERY_RUN])
    return TrimixError(
        f"Unknown argument {name!r} (with policy={policy}).{near}",
        f"accepted: {', '.join([*of_run, *of_sources])}; the last {len(of_sources)} also for some "
        "sources only: large_device, small_dtype, small_cpt_revision …",
    )
