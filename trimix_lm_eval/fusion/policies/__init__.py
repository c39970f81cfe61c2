"""Who gets which weight: a registry of policies.

A policy is one small dataclass; its fields are its options, given as ``--model_args`` like any
other argument. Add one by subclassing `Policy` and decorating it with `register`.

Invariant 5: a weight is never chosen from the text it is judged on. Prompt policies read the
prompt (exemplars and test input, no answer); the gate reads the distribution that it is about to
change; rolling log-likelihood, which has no prompt, is prequential: token t is scored with the
weights that suit the tokens before t.

All options of one question share the weights of their common context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimix_lm_eval.fusion.collectors import (
    Choice,
    EntropyCollector,
    GridCollector,
    NewtonCollector,
    PromptCollector,
)
from trimix_lm_eval.fusion.logits import best_point, log_prob
from trimix_lm_eval.fusion.newton import Moments, minimise
from trimix_lm_eval.fusion.policies.base import (
    PAPER,
    Policy,
    build,
    names,
    number,
    option_names,
    parse_grid,
    present,
    register,
)
from trimix_lm_eval.fusion.weights import PAPER_GRID, PRIOR, SOURCES, Weights
from trimix_lm_eval.utils.errors import TrimixError, unknown

__all__ = ["Policy", "build", "names", "option_names", "parse_grid", "register"]


@register("fixed")
@dataclasses.dataclass(frozen=True)
class Fixed(Policy):
    """One point for the whole run: L = alpha L_li + beta L_sc + (1 - alpha - beta) L_sb.

    With large_base given, gamma may differ from alpha (the paper's full equation). Honest when the
    point was chosen on other data than the test set, e.g. the weights that the authors ship.
    Cost: one forward of every source whose weight is not 0.
    """

    alpha: float = 0.1
    beta: float = 0.9
    gamma: float | None = None

    def __post_init__(self) -> None:
        for option in ("alpha", "beta", "gamma"):
            value = getattr(self, option)
            if value is not None:
                object.__setattr__(self, option, number(option, value))

    def points(self) -> tuple[Weights, ...]:
        """The one point."""
        return (Weights(self.alpha, self.beta, self.gamma),)


def _preset(name: str, point: Weights, doc: str, url: str = PAPER) -> None:
    """Register a policy that is one point and takes no options."""

    @register(name, url)
    @dataclasses.dataclass(frozen=True)
    class Preset(Policy):
        def points(self) -> tuple[Weights, ...]:
            return (point,)

    Preset.__doc__ = doc
    Preset.__name__ = Preset.__qualname__ = name


_preset("large_ins", Weights(1.0, 0.0), "The large model alone: the point (1, 0).")
_preset("small_cpt", Weights(0.0, 1.0), "The continually pretrained model alone: (0, 1).")
_preset("small_base", Weights(0.0, 0.0), "The small base model alone: (0, 0).")
_preset(
    "proxy_tuning",
    Weights(1.0, 1.0),
    "L_li + (L_sc - L_sb): the corner (1, 1) (Liu et al. 2024).",
    "https://arxiv.org/abs/2401.08565",
)


@dataclasses.dataclass(frozen=True)
class _Grid(Policy):
    """Options that all policies with a choice share.

    Attributes:
        grid: ``paper`` (36 points), or points as ``alpha:beta[:gamma]`` joined by ``;``.
        optimum: ``grid``, or ``newton`` for the exact minimum over the unit square.
    """

    grid: Any = "paper"
    optimum: str = "grid"

    scope: ClassVar[str] = "prompt"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", parse_grid(self.grid))
        if self.optimum not in ("grid", "newton"):
            raise unknown("optimum", str(self.optimum), ("grid", "newton"))

        if self.optimum == "newton" and self.grid != PAPER_GRID:
            raise TrimixError(
                "optimum=newton searches the whole unit square: it has no use for a grid.",
                "leave out one of the two",
            )

    @property
    def continuous(self) -> bool:
        """True with ``optimum=newton``."""
        return self.optimum == "newton"

    def points(self) -> tuple[Weights, ...]:
        """The grid; for Newton the corners that span what it may choose."""
        if self.optimum == "newton":
            return (Weights(1.0, 0.0), Weights(0.0, 1.0), Weights(0.0, 0.0))
        points: tuple[Weights, ...] = self.grid
        return points

    def without_evidence(self) -> Weights:
        """What is chosen where there is nothing to read: `PRIOR`, or the point nearest to it."""
        if self.optimum == "newton":
            return PRIOR
        return self.points()[best_point(torch.zeros(0), 0, self.points())]


@register("ppl")
@dataclasses.dataclass(frozen=True)
class PromptPerplexity(_Grid):
    """Per sample, the point under which the prompt has the lowest perplexity.

    argmin over (alpha, beta) of -sum_t log p(prompt_t | prompt_<t). The paper's method. Honest
    everywhere: it sees no answer. Known weakness: small_cpt nearly always has the lower NLL on
    text in the language, so the choice says little about the task.
    """

    def reader(self, names: tuple[str, ...]) -> PromptCollector:
        """Sums over the grid, or hidden states for Newton."""
        return (
            NewtonCollector(names) if self.optimum == "newton" else GridCollector(names, self.grid)
        )

    def choose(self, readers: Sequence[PromptCollector]) -> Choice:
        """Lowest mean over prompts of the mean NLL per token (of one prompt: its own)."""
        used = [r for r in readers if r.count]
        count = sum(r.count for r in used)
        if not used:
            return Choice(self.without_evidence())
        if self.optimum == "newton":
            newton = [r for r in used if isinstance(r, NewtonCollector)]

            def objective(weights: Tensor) -> Moments:
                parts = [r.moments(weights).times(1 / r.count / len(newton)) for r in newton]
                total = parts[0]
                for part in parts[1:]:
                    total = total.plus(part)
                return total

            point = minimise(objective, newton[0].names)
            vector = torch.tensor(point.vector(newton[0].names), dtype=torch.float64)
            return Choice(point, float(objective(vector).nll), count)
        grids = [r for r in used if isinstance(r, GridCollector)]
        nll = torch.stack([r.nll / r.count for r in grids]).mean(dim=0)  # [P]
        best = best_point(nll, 1, self.grid)
        return Choice(self.grid[best], float(nll[best]), count, tuple(nll.tolist()))


@register("ppl_task")
@dataclasses.dataclass(frozen=True)
class TaskPerplexity(PromptPerplexity):
    """One point per task: lowest mean over at most ``prompts`` prompts of their mean NLL.

    What the released code does (it reads 50 prompts). Honest: prompts only. The prompts are drawn
    with the run's seed, whatever the order of the requests, and the point is stored, so that a
    resumed run keeps it.
    """

    prompts: int = 50

    scope: ClassVar[str] = "task"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not str(self.prompts).isdecimal() or int(self.prompts) < 1:
            raise TrimixError(f"prompts={self.prompts!r} is no number of prompts.", "give N >= 1")
        object.__setattr__(self, "prompts", int(self.prompts))

    @property
    def task_prompts(self) -> int:
        """At most so many."""
        return self.prompts


@register("ppl_answer")
@dataclasses.dataclass(frozen=True)
class AnswerPerplexity(PromptPerplexity):
    """Like ``ppl``, but over the exemplars' answer tokens only.

    Not in the paper. The prompt's last line is the cue (``Answer:``); in every earlier block the
    text after that cue is an answer. Honest: exemplars come from the training split. Asks which
    point solves the task, not which one likes the language; without exemplars it is ``ppl``.
    """

    answers_only: ClassVar[bool] = True


@register("ent")
@dataclasses.dataclass(frozen=True)
class Entropy(_Grid):
    """Per sample, the point under which the first answer token's distribution has least entropy.

    argmin over (alpha, beta) of H(softmax L) at the end of the prompt; the paper's alternative.
    Honest: no answer is seen. Entropy is not convex in the weights: there is no ``newton``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimum == "newton":
            raise TrimixError(
                "policy=ent has no optimum=newton: entropy is not convex in the weights.",
                "leave out optimum, or give a finer grid=",
            )

    def reader(self, names: tuple[str, ...]) -> PromptCollector:
        """Entropies at the last position."""
        return EntropyCollector(names, self.grid)

    def choose(self, readers: Sequence[PromptCollector]) -> Choice:
        """Lowest entropy; of several prompts, lowest mean entropy."""
        entropies = [r.entropy for r in readers if isinstance(r, EntropyCollector)]
        read = [e for e in entropies if e is not None]
        if not read:
            return Choice(self.without_evidence())
        return Choice(self.grid[best_point(torch.stack(read).mean(0), 1, self.grid)])


@register("gate", "https://github.com/tianshuai-gao/SAF")
@dataclasses.dataclass(frozen=True)
class Gate(Policy):
    """Per token: how much the scorer believes in the host's favourite (SAF-W).

    e = p_s(argmax h), w_s = min(1, 1 - e + floor), L = (1 - w_s) L_h + w_s L_s. Not in the paper.
    Honest if the host was not chosen on the test set. Two forwards per token, no grid.

    Attributes:
        host: Whose favourite token is judged.
        scorer: Who judges, and takes over where it disagrees.
        floor: Least weight of the scorer (the paper's delta; lm-eval would take an argument of
            that name for a model).
    """

    host: str = "large_ins"
    scorer: str = "small_cpt"
    floor: float = 0.0

    scope: ClassVar[str] = "token"

    def __post_init__(self) -> None:
        for option in ("host", "scorer"):
            if getattr(self, option) not in SOURCES:
                raise unknown(option, str(getattr(self, option)), SOURCES)
        if self.host == self.scorer:
            raise TrimixError(f"host and scorer are both {self.host}.", "name two sources")
        object.__setattr__(self, "floor", number("floor", self.floor))
        if not 0.0 <= self.floor <= 1.0:
            raise TrimixError(f"floor={self.floor} is not a weight.", "give a number from 0 to 1")

    def points(self) -> tuple[Weights, ...]:
        """None: weights are per token and per source."""
        return ()

    def sources(self, available: Iterable[str]) -> tuple[str, ...]:
        """Host and scorer."""
        return present({self.host, self.scorer}, available, self.name)

    def token_weights(self, logits: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """Equation above, ``[N, S]``."""
        host, scorer = names.index(self.host), names.index(self.scorer)
        favourite = logits[host].argmax(dim=-1)  # [N]
        belief = log_prob(logits[scorer], favourite).exp()  # [N]
        w = (1.0 - belief + self.floor).clamp(0.0, 1.0)
        weights = logits[0].new_zeros(len(favourite), len(names))
        weights[:, scorer] = w
        weights[:, host] = 1.0 - w
        return weights
