"""Which device lm-eval means where nobody names one."""

from __future__ import annotations


def usable(device: str | None) -> str | None:
    """The ``--device`` of lm-eval, whose default is cuda:0 even where there is no GPU.

    Args:
        device: As lm-eval passes it on.

    Returns:
        The same; None where it is lm-eval's default and there is no GPU.
    """
    import torch

    if device in ("cuda", "cuda:0") and not torch.cuda.is_available():
        return None
    return device
