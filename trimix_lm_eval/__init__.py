"""TriMix for lm-evaluation-harness: several causal LMs, one fused next-token distribution.

Every Python process of an environment that holds this package imports this module when it starts
(see `trimix_lm_eval._autoload`), so nothing is imported here until somebody asks for it.
"""

from __future__ import annotations

__version__ = "0.1.1"

__all__ = ["SequenceFusion", "TriMix", "Weights", "__version__"]

# `typing.TYPE_CHECKING` under its own name: type checkers know it, and `typing` stays unloaded.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from trimix_lm_eval.fusion.weights import Weights
    from trimix_lm_eval.llm import TriMix
    from trimix_lm_eval.sequence_fusion import SequenceFusion

_HOME = {
    "SequenceFusion": "trimix_lm_eval.sequence_fusion",
    "TriMix": "trimix_lm_eval.llm",
    "Weights": "trimix_lm_eval.fusion.weights",
}


def __getattr__(name: str) -> object:
    """Import an exported name's module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the exported names too, so that completion finds them before their first use."""
    return sorted({*globals(), *__all__})
