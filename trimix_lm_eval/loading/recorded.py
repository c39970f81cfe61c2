"""The model's arguments that a results file records: which of them may be used again.

A results file may come from anybody. What is taken from it names models and says how their numbers
come about. Nothing in it runs code (a repository's, or that of a policy which is not installed),
writes to a place, or reaches the libraries below as an argument that is not named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trimix_lm_eval.fusion import policies
from trimix_lm_eval.loading.run_config import named_values
from trimix_lm_eval.loading.settings import OF_EVERY_RUN
from trimix_lm_eval.loading.source_spec import MODEL_OPTIONS, PREFIXES
from trimix_lm_eval.utils.errors import TrimixError

#: Of `SOURCE_OPTIONS`, each also under a prefix. Not ``trust_remote_code``, and not
#: ``attn_implementation``, by which transformers takes kernels from the Hub.
OF_SOURCES = ("dtype", "device", "quantization", "revision", "subfolder", "gguf_file")
#: Of `RUN_OPTIONS`. Not ``weights_log``, which is a file to write.
OF_RUNS = (
    *("tokenizer", "batch_size", "max_batch_size", "max_length", "add_bos_token"),
    *("prefix_token_id", "plausibility", "plausibility_source", "speculative", "seed"),
    *("enable_thinking", "think_end_token", "cuda_graphs", "fusion", "candidates"),
)
_MODELS = [one.name for one in MODEL_OPTIONS]
#: What may be used of the arguments that every policy has.
USABLE = frozenset(
    ["policy", *_MODELS, *(prefix + name for prefix in PREFIXES for name in OF_SOURCES), *OF_RUNS]
)
#: All of these; no policy has an option of such a name.
OF_EVERY_POLICY = OF_EVERY_RUN | {"policy"}


class Recorded(NamedTuple):
    """What a results file says of the model: arguments that may be used, names of the others."""

    arguments: dict[str, Any]
    left_out: tuple[str, ...]


def read(model_args: Any, where: str) -> Recorded:
    """Part the recorded arguments into those that may be used and those that may not.

    Args:
        model_args: ``config.model_args`` of a results file: an object, or the text that was given.
        where: The file, for messages.

    Raises:
        TrimixError: They cannot be read, or name a policy that is code of the file's choice: with
            another policy the numbers would be other ones.
    """
    given = {k: v for k, v in _mapping(model_args, where).items() if v is not None}
    given = policies.without_usual(given)
    policy = given.get("policy", "ppl")
    if policy not in policies.names():
        shown = f"policy={policy!s:.80}"
        raise TrimixError(
            f"{where} asks for {shown}, which is no installed policy, and code is not imported "
            "because a results file names it.",
            f"if you trust it, give all arguments yourself: --model_args pretrained=…,{shown}",
        )
    for name in given:
        if error := policies.replaced(name):
            raise error
    known = USABLE | {*policies.option_names(policy)}
    taken = {name: value for name, value in given.items() if name in known}
    return Recorded(taken, tuple(sorted(given.keys() - taken.keys())))


def _mapping(model_args: Any, where: str) -> dict[str, Any]:
    """The arguments by name, however they are written."""
    given = model_args or {}
    try:
        given = named_values(given) if isinstance(given, str) else given
    except ValueError as error:
        raise TrimixError(
            f"config.model_args of {where} cannot be read: {error}", "give --model_args"
        ) from error
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TrimixError(
            f"config.model_args of {where} is no object of names and values.", "give --model_args"
        )
    return dict(given)
