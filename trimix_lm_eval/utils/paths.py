"""Where the files are that ship with the package: tasks, model configurations, the demo trio.

In a wheel they lie inside the package. In a checkout (and so in an editable install, which does
not copy them) ``tasks/`` and ``model_configs/`` lie next to it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def tasks_dir() -> Path:
    """The folder of lm-eval task YAML."""
    return _shipped("tasks")


def model_configs_dir() -> Path:
    """The folder of ready ``lm_eval run --config`` files."""
    return _shipped("model_configs")


def demo_dir() -> Path:
    """The folder of the embedded demo models, one subfolder per source."""
    return _PACKAGE / "loading" / "demo"


def _shipped(name: str) -> Path:
    """Return a folder inside the installed package, or else next to it in the checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
