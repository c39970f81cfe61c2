"""Runs of `trimix cpt` on pico models and made-up text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

WORDS = ["the", "hen", "in", "a", "barn", "ran", "over", "rivers", "then", "rain", "fell"]
UYGHUR = ["ئۇيغۇر", "تىلى", "ناھايىتى", "گۈزەل", "ئۆرۈك", "مايمۇن", "كۆچەت", "يىلدا"]
ENGLISH = ["quick", "brown", "foxes", "jump", "across", "lazy", "dogs", "while", "nobody", "sees"]


def write_text(path: Path, lines: int = 400, words: list[str] = WORDS, seed: int = 0) -> Path:
    """Lines of words drawn by a seed, no two alike: something can be learned from them."""
    draw = random.Random(seed)
    made = [f"{' '.join(draw.choices(words, k=9))} {i}." for i in range(lines)]
    path.write_text("\n".join(made) + "\n", encoding="utf-8")
    return path


def config(base: str, folder: Path, **more: Any) -> dict[str, Any]:
    """A run of twelve steps, measured every four, into ``folder / "out"``."""
    text = folder / "text.txt"
    if not text.exists():
        write_text(text)
    return {
        "base": base,
        "output": str(folder / "out"),
        "text": str(text),
        "sequence_length": 32,
        "batch_tokens": 128,
        "steps": 12,
        "evaluations": 3,
        "learning_rate": 1e-2,
        "min_learning_rate": 1e-4,
        "warmup": 0.1,
        **more,
    }


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a model."""
    return load_file(folder / "model.safetensors")


def difference(one: Path, other: Path) -> float:
    """The largest difference between the weights of two models."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)
