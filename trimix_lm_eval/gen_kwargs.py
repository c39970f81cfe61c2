"""lm-eval's ``generation_kwargs`` as a `Generation`: every name is read, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from trimix_lm_eval.errors import TrimixError, unknown
from trimix_lm_eval.trimix import Generation

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
    values: dict[str, Any] = dict(normalize_gen_kwargs(dict(kwargs)))
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
    temperature = 0.0
    if values.get("do_sample"):
        given = kwargs.get("temperature")
        temperature = 1.0 if given is None else float(given)
    return Generation(
        max_new_tokens=int(values["max_gen_toks"]),
        stop=tuple(str(s) for s in stop),
        temperature=temperature,
        top_k=int(values.get("top_k") or 0),
        top_p=float(values.get("top_p") or 1.0),
        seed=seed,
    )
