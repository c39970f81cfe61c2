"""All choices of the experiment: sizes, steps, mixtures. Nothing here is fitted on test text.

`EXPERIMENT` is what the README reports, `SMOKE` goes the same way at toy size. How they were
settled is told in the README.
"""

from __future__ import annotations

from typing import Any, NamedTuple

LANGUAGES = {"bo": "Tibetan", "ug": "Uyghur"}
PAIRS = ("large", "medium")  # what the small models are fused with
CONTEXT = 1024  # positions of all models
EXEMPLARS = 2  # in each prompt of a task


class Shape(NamedTuple):
    """Size of a Llama.

    Attributes:
        layers: Number of them.
        width: Of the residual stream.
        feed_forward: Width inside the MLP.
        heads: Attention heads.
        head_dim: Size of each; `copying` needs 64 of them to tell two tokens apart.
    """

    layers: int
    width: int
    feed_forward: int
    heads: int
    head_dim: int = 64


class Stage(NamedTuple):
    """One training run.

    Attributes:
        steps: Number of optimizer steps.
        lr: Peak learning rate, reached after `warmup` steps, then a cosine down to 0.
        mixture: Share of the rows from each stream: a language, or one of `curriculum`.
        long: Share of the steps, the last ones, whose rows fill the whole context.
        warmup: Steps of linear warm-up.
        batch: Tokens per step.
        length: Tokens per row.
    """

    steps: int
    lr: float
    mixture: dict[str, float]
    long: float = 0.1
    warmup: int = 50
    batch: int = 4096
    length: int = 256


class ExperimentConfig(NamedTuple):
    """The whole experiment.

    Attributes:
        vocabulary: Entries of the tokenizer.
        shapes: Of the "small", "medium" and "large" models.
        small_base: How the small base is pretrained.
        medium_base: How the medium base is pretrained.
        medium_ins: How the medium base is instruction-tuned.
        large_base: How the large base is pretrained.
        large_ins: How the large base is instruction-tuned.
        cpt: By language, keys of the YAML of `trimix cpt` that differ from `cpt.yaml`.
        passes: By language, how often small_cpt reads its text, each time with other quotations.
        documents: Of tasks and of nonsense that models read, of each.
        items: Problems of each kind that all models are judged on, and passages of running text,
            or as many of those as there are.
    """

    vocabulary: int
    shapes: dict[str, Shape]
    small_base: Stage
    medium_base: Stage
    medium_ins: Stage
    large_base: Stage
    large_ins: Stage
    cpt: dict[str, dict[str, Any]]
    passes: dict[str, int]
    documents: int
    items: dict[str, int]


_READ = {"en": 0.36, "bo": 0.13, "ug": 0.05, "repeats": 0.10, "tasks": 0.24, "nonsense": 0.12}
_TUNED = {"tasks": 0.40, "nonsense": 0.30, "repeats": 0.09, "en": 0.10, "bo": 0.08, "ug": 0.03}
EXPERIMENT = ExperimentConfig(
    vocabulary=2048,
    shapes={
        "small": Shape(3, 144, 352, 4),
        "medium": Shape(4, 192, 480, 4),
        "large": Shape(4, 256, 640, 4),
    },
    small_base=Stage(1300, 2.5e-3, _READ),
    medium_base=Stage(1000, 2e-3, _READ),
    medium_ins=Stage(300, 1.2e-3, _TUNED),
    large_base=Stage(1000, 1.5e-3, _READ),
    large_ins=Stage(300, 1e-3, _TUNED),
    cpt={"bo": {"steps": 700}, "ug": {"steps": 240}},
    passes={"bo": 1, "ug": 6},  # of 2.6 M tokens of Tibetan, and 0.13 M of Uyghur
    documents=12000,
    items={"problems": 400, "passages": 400},
)

_TOY = Stage(12, 2e-3, _READ, warmup=4, batch=1024)
SMOKE = ExperimentConfig(
    vocabulary=640,
    shapes={
        "small": Shape(2, 32, 64, 2, 16),
        "medium": Shape(2, 32, 96, 2, 16),
        "large": Shape(2, 48, 96, 2, 16),
    },
    small_base=_TOY,
    medium_base=_TOY,
    medium_ins=_TOY._replace(mixture=_TUNED),
    large_base=_TOY,
    large_ins=_TOY._replace(mixture=_TUNED),
    cpt={name: {"steps": 4, "batch_tokens": 256, "sequence_length": 64} for name in LANGUAGES},
    passes={"bo": 1, "ug": 2},
    documents=80,
    items={"problems": 2, "passages": 2},
)
