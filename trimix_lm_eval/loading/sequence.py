"""What ``fusion=sequence`` takes, checked before anything is loaded.

Each source scores a text with a tokenizer of its own, and the scores are summed, times the weights.
So there is no distribution over the next token: nothing may be asked for that needs one, and
nothing that means a token of one tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.utils.errors import TrimixError

#: How sources are put together.
TOKEN, SEQUENCE = FUSIONS = ("token", "sequence")
#: What results say of the scores.
SCORES = "weighted sums of the sources' log-likelihoods in nats; no log-probabilities"
_USABLE = (
    "name a point: policy=fixed,alpha=…,beta=… (or large_ins, small_cpt, small_base, proxy_tuning; "
    "in a sweep, grid:), or leave out fusion=sequence if the models have one tokenizer"
)
#: How a source is run by itself, whose tokenizer need not be the large model's.
ALONE = "pretrained=<its path>,policy=large_ins, without the others and without fusion="
#: Arguments that mean something of one tokenizer or one distribution, with the reason.
_REFUSED = {
    "tokenizer": "each source reads with its own tokenizer",
    "prefix_token_id": "an id is another token for each source",
    "plausibility": "its mask looks at one distribution over tokens",
    "think_end_token": "the sources would have to think alike to be asked about the same answer",
}


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse arguments that do not go together.

    Args:
        given: Those of `RUN_OPTIONS` that are given, typed.

    Raises:
        TrimixError: One needs what the asked fusion does not have.
    """
    if given.get("fusion", TOKEN) == TOKEN:
        if given.get("candidates"):
            raise TrimixError(
                "candidates= is of fusion=sequence only.", "add fusion=sequence, or leave it out"
            )
        return
    for name, reason in _REFUSED.items():
        if name in given:
            raise TrimixError(f"{name}= is not for fusion=sequence: {reason}.", "leave it out")


def check_config(config: FusionConfig) -> None:
    """Refuse what needs one distribution over the next token.

    Raises:
        TrimixError: The policy, or the mask that belongs to it, does.
    """
    policy = config.policy
    if policy.scope == "token" or policy.fuses:
        reason = "it looks at the next token's distributions of all sources"
    elif policy.scope != "run":
        reason = "it chooses by a prompt's tokens, fused under each point"
    elif config.mask is not None:
        reason = "its mask of plausible tokens looks at one distribution over tokens"
    else:
        return
    raise TrimixError(f"policy={policy.name} is not for fusion=sequence: {reason}.", _USABLE)


def policies_taken() -> list[str]:
    """The policies that ``fusion=sequence`` takes by their names alone."""
    found = []
    for name in policies.names():
        try:
            check_config(FusionConfig(policies.build(name)))
        except TrimixError:
            continue
        found.append(name)
    return found


def no_rolling() -> TrimixError:
    """The error for whole texts, whose log-likelihood would be a perplexity."""
    return TrimixError(
        "fusion=sequence has no perplexity: what it gives texts sums to no distribution over them, "
        "so that bits per byte would compare with nothing.",
        f"leave tasks of loglikelihood_rolling out, or run them of each source alone: {ALONE}",
    )
