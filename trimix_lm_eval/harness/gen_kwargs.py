"""lm-eval's ``generation_kwargs`` as a `Generation`: every name is read, or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from trimix_lm_eval.llm import Generation
from trimix_lm_eval.utils.errors import TrimixError, unknown

_READ = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")
#: Names that other backends know: accepted where they change nothing, with this value.
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_p": 0.0,
    "early_stopping": False,
    "use_cache": True,
}


def generation(kwargs: Mapping[str, Any], eos: str, seed: int) -> Generation:
    """Read a request's generation arguments.

    Args:
        kwargs: ``generation_kwargs`` of a task, ``--gen_kwargs`` merged in.
        eos: The end-of-text string, always a stop string.
        seed: Of this request.

    Raises:
        TrimixError: A name or a value that trimix does not take.
    """
    try:
        values: dict[str, Any] = dict(normalize_gen_kwargs(dict(kwargs)))
    except (TypeError, ValueError) as error:
        raise TrimixError(
            f"generation_kwargs cannot be read: {error}",
            "max_gen_toks is a whole number, temperature a number; --gen_kwargs overrides a task",
        ) from error
    for name, neutral in _NEUTRAL.items():
        value = values.pop(name, neutral)
        if value is not None and value != neutral:
            hint = " (trimix decodes without beams)" if name == "num_beams" else ""
            raise TrimixError(
                f"generation_kwargs {name}={value!r} is not supported{hint}.",
                f"leave it out or set {name}={neutral}; --gen_kwargs {name}={neutral} overrides "
                "what a task says",
            )
    for name in values:
        if name not in _READ:
            raise unknown("generation argument", name, [*_READ, *_NEUTRAL])
    stop = handle_stop_sequences(list(values["until"] or []), eos)
    sampling = _truth(values.get("do_sample"))
    most = kwargs.get("max_gen_toks")  # as it was written: lm-eval's reading cuts fractions off
    return Generation(
        max_new_tokens=_whole("max_gen_toks", values["max_gen_toks"] if most is None else most, 1),
        stop=tuple(str(s) for s in stop),
        temperature=_number("temperature", kwargs.get("temperature"), 0, math.inf, 1.0)
        if sampling
        else 0.0,
        top_k=_whole("top_k", values.get("top_k"), 0),
        top_p=_number("top_p", values.get("top_p"), 1e-9, 1, 1.0),
        seed=seed,
    )


def _truth(value: Any) -> bool:
    """``do_sample``: true, false, or how command lines and YAML spell them."""
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    text = str(value or "false").lower()
    if text not in words:
        raise TrimixError(
            f"generation argument do_sample={value!r} is neither true nor false.",
            "write do_sample=true",
        )
    return words[text]


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number; None is the least."""
    number = _number(name, value, least, math.inf, least)
    if number != int(number):
        raise TrimixError(
            f"generation argument {name}={value!r} is not a whole number.",
            f"give one that is at least {least}",
        )
    return int(number)


def _number(name: str, value: Any, least: float, most: float, default: float = math.nan) -> float:
    """A number within bounds; None is the default."""
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most or (isinstance(least, int) and math.isinf(number)):
        bounds = f"at least {least}" if math.isinf(most) else f"above 0 and at most {most}"
        raise TrimixError(
            f"generation argument {name}={value!r} is not a number that makes sense.",
            f"give one that is {bounds}",
        )
    return number
