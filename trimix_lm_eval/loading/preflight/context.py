"""How many tokens the sources, and so a run, can see at once.

Two kinds of rotary embedding, ``dynamic`` and ``longrope``, turn *all* positions differently once
the longest row of a batch exceeds the original context: one row's numbers would depend on its
neighbours, and those of a cache on what follows. The context therefore ends there, unless a longer
one is asked for with ``max_length`` of models of the second kind: these are then loaded so that
every text has the factors for long ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trimix_lm_eval.loading.preflight.access import label
from trimix_lm_eval.loading.rope import rope_kinds
from trimix_lm_eval.loading.settings import SourceSpec
from trimix_lm_eval.utils.errors import TrimixError, quoted, warn_once

#: Context length of a model that does not tell, as in lm-eval.
_DEFAULT_LENGTH = 2048
#: Above this, a tokenizer's model_max_length stands for "not set".
_NO_LENGTH = 10**15


class Contexts(NamedTuple):
    """Context lengths in tokens.

    Attributes:
        run: Of the run: as set, else the smallest of the sources'.
        sources: Of each source.
        whole: Of those sources of which a part is used only: all that they were made for.
        long: Sources whose rotary embedding takes the factors for long texts, for every text.
    """

    run: int
    sources: dict[str, int]
    whole: dict[str, int]
    long: frozenset[str]

    def line(self) -> str:
        """They for reading."""
        parts = []
        for name, length in self.sources.items():
            more = f" of {self.whole[name]:,}" if name in self.whole else ""
            factors = " with the factors for long texts" if name in self.long else ""
            parts.append(f"{name} {length:,}{more}{factors}")
        return f"context: {self.run:,} tokens ({', '.join(parts)})"


def contexts_of(
    asked: int | None, specs: Sequence[SourceSpec], configs: Mapping[str, Any], tokenizer: Any
) -> Contexts:
    """Context lengths of sources and of their run.

    Args:
        asked: The context length that is asked for, if any.
        specs: The sources.
        configs: Their configs.
        tokenizer: The one in use.

    Raises:
        TrimixError: A length is none, or is more than some sources can be run with.
    """
    long = _long(asked, configs)
    lengths, whole = {}, {}
    for spec in specs:
        config, name = configs[spec.name], spec.name
        made_for = _made_for(config, tokenizer, label(spec))
        lengths[name] = made_for if name in long else min(made_for, _fixed(config))
        if lengths[name] < made_for:
            whole[name] = made_for
    name, smallest = min(lengths.items(), key=lambda item: item[1])
    if asked is None:
        if smallest < whole.get(name, 0):
            _tell_cut(name, smallest, whole[name], configs[name])
    elif asked > smallest:
        warn_once(
            f"max_length={asked} is more than {name} was made for ({smallest} "
            "tokens); positions beyond that are untrained, or an error."
        )
    return Contexts(smallest if asked is None else int(asked), lengths, whole, long)


def _long(asked: int | None, configs: Mapping[str, Any]) -> frozenset[str]:
    """The sources that are to take the factors for long texts: all that have some, or none."""
    if asked is None:
        return frozenset()
    long, short = set[str](), set[str]()
    for role, config in configs.items():
        limits = rope_kinds(config)
        if asked > limits.get("dynamic", asked):
            fixed = limits["dynamic"]
            raise TrimixError(
                f"max_length={asked} is more than the {fixed} tokens up to which "
                f"{role}'s rotary embedding is the same for every row of a batch; beyond, the "
                "numbers of one request would depend on its neighbours.",
                f"leave max_length out, or give at most {fixed}",
            )
        if "longrope" in limits:
            (long if asked > limits["longrope"] else short).add(role)
    if long and short:
        most = min(rope_kinds(configs[role])["longrope"] for role in long)
        raise TrimixError(
            f"max_length={asked} is more than {', '.join(sorted(long))} can read with the factors "
            f"that its rotary embedding has for short texts, but not more than "
            f"{', '.join(sorted(short))} can: one would be run as for long texts, the other not.",
            f"leave max_length out, or give at most {most}",
        )
    return frozenset(long)


def _tell_cut(name: str, length: int, whole: int, config: Any) -> None:
    """Say that a context is shorter than a model was made for, and why."""
    more = (
        f" max_length= up to {whole:,} runs every text with the factors for long ones."
        if "dynamic" not in rope_kinds(config)
        else ""
    )
    warn_once(
        f"The context is {length:,} tokens, not the {whole:,} that {name} was made for: beyond "
        "that its rotary embedding would turn all positions of a text otherwise, by the longest "
        f"text of a batch.{more}"
    )


def context_of(config: Any, tokenizer: Any, label: str = "the model") -> int:
    """Context length of a source with the tokenizer in use, found as lm-eval finds it.

    Raises:
        TrimixError: What is given as one is no number of tokens.
    """
    return min(_made_for(config, tokenizer, label), _fixed(config))


def _made_for(config: Any, tokenizer: Any, label: str) -> int:
    """Tokens that a model was made for, by its own files."""
    text = config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(text, name, None) is not None:
            return _tokens(f"{label}: {name}", getattr(text, name))
    length = tokenizer.model_max_length
    if isinstance(length, int | float) and length >= _NO_LENGTH:
        return _DEFAULT_LENGTH
    return _tokens(f"{label}: model_max_length", length)


def _fixed(config: Any) -> int:
    """Tokens up to which rotary embeddings do not depend on what else is in the batch."""
    return min(rope_kinds(config).values(), default=_NO_LENGTH)


def _tokens(name: str, value: Any) -> int:
    """A context length of a model's own files."""
    # Not `in range(…)`, which looks for a fraction among all numbers, one after the other.
    if isinstance(value, int | float) and 2 <= value < _NO_LENGTH and value == int(value):
        return int(value)
    raise TrimixError(
        f"{name}={quoted(value)} is no number of tokens.",
        "write the context length there, in the model's config.json or tokenizer_config.json",
    )
