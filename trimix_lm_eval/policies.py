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
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from trimix_lm_eval import fusion
from trimix_lm_eval.errors import TrimixError, unknown, warn_once
from trimix_lm_eval.exemplars import answer_spans
from trimix_lm_eval.fusion import PAPER_GRID, SOURCES, Weights
from trimix_lm_eval.readers import Choice, EntropyReader, GridReader, NewtonReader, Reader

PAPER = "https://arxiv.org/abs/2604.18106"


@dataclasses.dataclass(frozen=True)
class Policy:
    """Base of all policies: one point for everything, chosen in advance.

    Attributes:
        name: The name it is registered under.
        scope: What one choice holds for: ``run``, ``task``, ``prompt`` or ``token``.
        url: The source paper.
    """

    name: ClassVar[str] = ""
    scope: ClassVar[str] = "run"
    url: ClassVar[str] = PAPER

    @property
    def continuous(self) -> bool:
        """Whether any point of the unit square may be chosen, not only `points`."""
        return False

    @property
    def task_prompts(self) -> int:
        """How many prompts of a task are read, where scope is ``task``."""
        return 0

    def judged(self, prompt: str, ends: Sequence[str]) -> list[tuple[int, int]] | None:
        """Which part of a prompt's text a reader is shown.

        Args:
            prompt: Exemplars and test input.
            ends: Special tokens, as text.

        Returns:
            ``[start, end)`` characters; None for all of it.
        """
        return None

    def points(self) -> tuple[Weights, ...]:
        """Every point that may be chosen (corners, for a continuous choice)."""
        raise NotImplementedError

    def sources(self, available: Iterable[str]) -> tuple[str, ...]:
        """The sources that may get a weight other than 0, in the order of `SOURCES`.

        Raises:
            TrimixError: One of them was not given.
        """
        used = {n for point in self.points() for n, w in point.by_source().items() if w}
        return _present(used, available, self.name)

    def reader(self, names: Sequence[str]) -> Reader | None:
        """A fresh reader for one prompt; None if the policy looks at no prompt."""
        return None

    def choose(self, readers: Sequence[Reader]) -> Choice:
        """The point for one prompt (one reader) or for a whole task (many)."""
        return Choice(self.points()[0])

    def token_weights(self, logits: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """Source weights per position, ``[N, S]``; only where scope is ``token``."""
        raise NotImplementedError


_REGISTRY: dict[str, type[Policy]] = {}
_P = TypeVar("_P", bound=type[Policy])


def register(name: str, url: str = PAPER) -> Callable[[_P], _P]:
    """Class decorator: make a policy available under a name.

    Args:
        name: What users write after ``policy=``.
        url: The paper it comes from.
    """

    def add(cls: _P) -> _P:
        cls.name, cls.url = name, url
        _REGISTRY[name] = cls
        return cls

    return add


def names() -> list[str]:
    """The registered policies."""
    return sorted(_REGISTRY)


def option_names(policy: str) -> list[str]:
    """The options that a policy takes.

    Raises:
        TrimixError: There is no such policy.
    """
    if policy not in _REGISTRY:
        raise unknown("policy", policy, _REGISTRY)
    return [field.name for field in dataclasses.fields(_REGISTRY[policy])]


def build(policy: str, **options: Any) -> Policy:
    """The policy of this name, with its options.

    Raises:
        TrimixError: Unknown policy or option, or a value that it does not take.
    """
    accepted = option_names(policy)
    for option in options:
        if option not in accepted:
            raise unknown(f"option of policy={policy}", option, accepted or ["(none)"])
    return _REGISTRY[policy](**options)


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
                object.__setattr__(self, option, _number(option, value))

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
            return fusion.PRIOR
        return self.points()[fusion.best_point(torch.zeros(0), 0, self.points())]


@register("ppl")
@dataclasses.dataclass(frozen=True)
class PromptPerplexity(_Grid):
    """Per sample, the point under which the prompt has the lowest perplexity.

    argmin over (alpha, beta) of -sum_t log p(prompt_t | prompt_<t). The paper's method. Honest
    everywhere: it sees no answer. Known weakness: small_cpt nearly always has the lower NLL on
    text in the language, so the choice says little about the task.
    """

    def reader(self, names: Sequence[str]) -> Reader:
        """Sums over the grid, or hidden states for Newton."""
        return NewtonReader(names) if self.optimum == "newton" else GridReader(names, self.grid)

    def choose(self, readers: Sequence[Reader]) -> Choice:
        """Lowest mean over prompts of the mean NLL per token (of one prompt: its own)."""
        used = [r for r in readers if r.count]
        count = sum(r.count for r in used)
        if not used:
            return Choice(self.without_evidence())
        if self.optimum == "newton":
            newton = [r for r in used if isinstance(r, NewtonReader)]

            def objective(weights: Tensor) -> fusion.Moments:
                parts = [r.moments(weights).times(1 / r.count / len(newton)) for r in newton]
                total = parts[0]
                for part in parts[1:]:
                    total = total.plus(part)
                return total

            point = fusion.minimise(objective, used[0].names)
            vector = torch.tensor(point.vector(used[0].names), dtype=torch.float64)
            return Choice(point, float(objective(vector).nll), count)
        grids = [r for r in used if isinstance(r, GridReader)]
        nll = torch.stack([r.nll / r.count for r in grids]).mean(dim=0)  # [P]
        best = fusion.best_point(nll, 1, self.grid)
        return Choice(self.grid[best], float(nll[best]), count)


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

    def judged(self, prompt: str, ends: Sequence[str]) -> list[tuple[int, int]] | None:
        """The exemplars' answers; all of a prompt that has none, with a warning."""
        spans = answer_spans(prompt, ends)
        if not spans:
            warn_once(
                "policy=ppl_answer found no exemplar answers in a prompt: such prompts are judged "
                "as a whole, as policy=ppl does. Exemplars must be separated by a blank line "
                "(lm-eval's fewshot_delimiter) and end in the same cue, e.g. 'Answer:'."
            )
        return spans or None


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

    def reader(self, names: Sequence[str]) -> Reader:
        """Entropies at the last position."""
        return EntropyReader(names, self.grid)

    def choose(self, readers: Sequence[Reader]) -> Choice:
        """Lowest entropy; of several prompts, lowest mean entropy."""
        entropies = [r.entropy for r in readers if isinstance(r, EntropyReader)]
        read = [e for e in entropies if e is not None]
        if not read:
            return Choice(self.without_evidence())
        return Choice(self.grid[fusion.best_point(torch.stack(read).mean(0), 1, self.grid)])


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
        object.__setattr__(self, "floor", _number("floor", self.floor))
        if not 0.0 <= self.floor <= 1.0:
            raise TrimixError(f"floor={self.floor} is not a weight.", "give a number from 0 to 1")

    def points(self) -> tuple[Weights, ...]:
        """None: weights are per token and per source."""
        return ()

    def sources(self, available: Iterable[str]) -> tuple[str, ...]:
        """Host and scorer."""
        return _present({self.host, self.scorer}, available, self.name)

    def token_weights(self, logits: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """Equation above, ``[N, S]``."""
        host, scorer = names.index(self.host), names.index(self.scorer)
        favourite = logits[host].argmax(dim=-1)  # [N]
        belief = fusion.log_prob(logits[scorer], favourite).exp()  # [N]
        w = (1.0 - belief + self.floor).clamp(0.0, 1.0)
        weights = logits[0].new_zeros(len(favourite), len(names))
        weights[:, scorer] = w
        weights[:, host] = 1.0 - w
        return weights


def parse_grid(text: Any) -> tuple[Weights, ...]:
    """Read a grid: ``paper``, ``0.1:0.9;0.3:1.0``, or a list of pairs, triples or such strings.

    Raises:
        TrimixError: It is none of these, or empty.
    """
    if text == "paper":
        return PAPER_GRID
    mend = "write grid=paper, or points as alpha:beta[:gamma] joined by ';', e.g. 0.1:0.9;0.3:1.0"
    items = text.split(";") if isinstance(text, str) else text
    points = []
    try:
        for item in items:
            parts = item.split(":") if isinstance(item, str) else item
            numbers = [float(x) for x in parts if x is not None]
            if len(numbers) not in (2, 3) or not all(map(math.isfinite, numbers)):
                raise ValueError
            points.append(Weights(*numbers))
    except (TypeError, ValueError):
        raise TrimixError(f"grid={text!r} is not a list of points.", mend) from None
    if not points:
        raise TrimixError("The grid is empty.", mend)
    return tuple(points)


def _present(used: Iterable[str], available: Iterable[str], policy: str) -> tuple[str, ...]:
    """The used sources in the order of `SOURCES`; an error names those that are missing."""
    given, wanted = set(available), set(used)
    missing = [name for name in SOURCES if name in wanted and name not in given]
    if missing:
        plural = "the sources" if len(missing) > 1 else "the source"
        alone = " (or policy=large_ins for that model alone)" if "large_ins" in given else ""
        raise TrimixError(
            f"policy={policy} needs {plural} {' and '.join(missing)}, not given.",
            f"add {','.join(f'{name}=<Hub id or folder>' for name in missing)}{alone}",
        )
    return tuple(name for name in SOURCES if name in wanted)


def _number(option: str, value: Any) -> float:
    """A finite number, or an error that names the option."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise TrimixError(f"{option}={value!r} is not a number.", f"e.g. {option}=0.3")
    return number
