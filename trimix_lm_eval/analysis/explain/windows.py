"""What is longer than the context, or has no prompt: in windows, and with weights, as it is scored.

A window is a context and the tokens that are scored after it; every token is scored once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trimix_lm_eval.analysis.explain.measure import chunks
from trimix_lm_eval.fusion.collectors import Choice, prequential
from trimix_lm_eval.fusion.logits import grid_nll
from trimix_lm_eval.llm import TriMix
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.windows import Window


def of_text(model: TriMix, text: str) -> list[Window]:
    """The windows of a text without a prompt.

    Raises:
        TrimixError: It has no tokens.
    """
    windows = model.codec.windows(text, model.max_length)
    if not windows:
        raise TrimixError("The text is empty: it has no tokens to explain.")
    return windows


def weights(
    model: TriMix, windows: Sequence[Window], choice: Choice | None
) -> tuple[list[list[float]], Choice | None]:
    """The weights that the tokens of a text without a prompt were scored with.

    Args:
        model: The sources and the policy.
        windows: Of the text.
        choice: What scoring says that it chose.

    Returns:
        One weight per source for each token, and the choice, if it was one for all tokens.
    """
    fuser, policy = model.fuser, model.fuser.configs[0].policy
    size = sum(len(tokens) for _, tokens in windows)
    if policy.scope in ("run", "token"):
        chosen = choice if policy.scope == "run" else None
        return [fuser.vector(chosen)] * size, chosen
    points = policy.points()
    names = fuser.ensemble.names
    vectors = torch.tensor([point.vector(names) for point in points], device=fuser.ensemble.device)
    nll = [
        grid_nll(logits, targets, vectors).cpu()
        for window in windows
        for _, logits, targets in chunks(fuser, window)
    ]
    at = prequential(torch.cat(nll, dim=1), points).tolist()
    return [points[i].vector(names) for i in at], None


def told(model: TriMix, parts: Sequence[Window]) -> list[str]:
    """Whether a text was read in several pieces."""
    if len(parts) == 1:
        return []
    return [
        f"The text is longer than the context length of {model.max_length} tokens: it was read in "
        f"{len(parts)} windows, and the sources did not see what lies before a window."
    ]
