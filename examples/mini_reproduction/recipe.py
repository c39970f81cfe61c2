"""All choices of the experiment: sizes, steps, mixtures. Nothing here is fitted on test text.

`EXPERIMENT` is what the README reports, `DEMO` makes the models that ship in the package, `SMOKE`
goes the same way at toy size. How they were settled is told in the README.
"""

from __future__ import annotations

from typing import Any, NamedTuple

LANGUAGES = {"bo": "Tibetan", "ug": "Uyghur"}
CONTEXT = 1024  # positions of all models


class Shape(NamedTuple):
    """Size of a Llama.

    Attributes:
        layers: Number of them.
        width: Of the residual stream.
        feed_forward: Width inside the MLP.
        heads: Attention heads.
    """

    layers: int
    width: int
    feed_forward: int
    heads: int


class Stage(NamedTuple):
    """One training run.

    Attributes:
        steps: Number of optimizer steps.
        lr: Peak learning rate, reached after `warmup` steps, then a cosine down to 0.
        mixture: Share of the rows from each stream: a language, or "tasks".
        long: Share of the steps, the last ones, whose rows fill the whole context.
        warmup: Steps of linear warm-up.
        batch: Tokens per step.
        length: Tokens per row.
    """

    steps: int
    lr: float
    mixture: dict[str, float]
    long: float = 0.0
    warmup: int = 50
    batch: int = 2048
    length: int = 256


class ExperimentConfig(NamedTuple):
    """The whole experiment.

    Attributes:
        vocabulary: Entries of the tokenizer.
        shapes: Of the "small" and the "large" models.
        small_base: How the small base is pretrained.
        large_base: How the large base is pretrained.
        large_ins: How the large base is instruction-tuned.
        cpt: By language, keys of the YAML of `trimix cpt` that differ from `cpt.yaml`.
        tuning: Items that `large_ins` learns from, per task: in English, and as many of nonsense.
        items: Items per task, by task, that all models are judged on.
    """

    vocabulary: int
    shapes: dict[str, Shape]
    small_base: Stage
    large_base: Stage
    large_ins: Stage
    cpt: dict[str, dict[str, Any]]
    tuning: int
    items: dict[str, int]


EXPERIMENT = ExperimentConfig(
    vocabulary=2048,
    shapes={"small": Shape(3, 128, 384, 4), "large": Shape(5, 224, 640, 4)},
    small_base=Stage(500, 5e-3, {"en": 0.8, "bo": 0.12, "ug": 0.08}, long=0.1),
    large_base=Stage(500, 5e-3, {"en": 0.75, "bo": 0.15, "ug": 0.10}, long=0.1),
    large_ins=Stage(250, 2e-3, {"tasks": 0.6, "en": 0.2, "bo": 0.12, "ug": 0.08}, long=0.1),
    cpt={"bo": {"steps": 200}, "ug": {"steps": 120}},
    tuning=6000,
    items={"choice": 300, "write": 40, "sign": 150, "rolling": 30},
)

_TOY = Stage(20, 5e-3, {"en": 0.6, "bo": 0.2, "ug": 0.2}, warmup=5, batch=256, length=64)
SMOKE = ExperimentConfig(
    vocabulary=512,
    shapes={"small": Shape(2, 32, 64, 2), "large": Shape(2, 48, 96, 2)},
    small_base=_TOY,
    large_base=_TOY,
    large_ins=_TOY._replace(mixture={"tasks": 0.7, "en": 0.3}, length=256),
    cpt={name: {"steps": 4, "batch_tokens": 256, "sequence_length": 64} for name in LANGUAGES},
    tuning=100,
    items={"choice": 2, "write": 2, "sign": 2, "rolling": 2},
)
