"""What a policy is: the base of all, and the registry of those that this package has.

A policy is one frozen dataclass in one file of this folder. It says all that others ask of it as
attributes of its class; its fields are its options. docs/add_a_policy.md adds one, step by step.

Invariant 5: a weight is never chosen from the text it is judged on. A policy per sample or task
reads prompts (exemplars and test input, no answer); one per token reads the distribution that it is
about to change; a text without a prompt is prequential: token t is scored with the weights that
suit the tokens before t.

Nothing here imports torch at once, so that results are read without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from trimix_lm_eval.fusion.collectors import Choice, PromptCollector
from trimix_lm_eval.fusion.weights import LARGEST, PAPER_GRID, PRIOR, SOURCES, Weights
from trimix_lm_eval.utils.errors import TrimixError, quoted
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import whole

if TYPE_CHECKING:
    from torch import Tensor

PAPER = "https://arxiv.org/abs/2604.18106"
#: What one choice of weights holds for.
SCOPES = ("run", "task", "sample", "token")
#: How a policy may be honest, see `Policy.honesty`.
HONESTY = ("label_free", "needs_exemplars", "oracle")
#: What a results file records of a policy beside its options, see `Policy.record`.
RECORDED = ("name", "label", "honesty", "cost", "differing", "plausibility", "class")


@dataclasses.dataclass(frozen=True)
class Policy:
    """Who gets which weight. By itself: one point for everything, chosen in advance.

    Attributes:
        name: What users write after ``policy=``, and what results and tables call it.
        label: What reports title it; empty for ``TriMix`` and the name.
        scope: What one choice holds for: ``run``, ``task``, ``sample`` or ``token``.
        honesty: ``label_free``: it sees no answer of the documents that are scored.
            ``needs_exemplars``: neither, as long as the exemplars whose answers it reads come from
            another split. ``oracle``: it sees scores or answers of what is scored: an upper bound,
            which is not submitted.
        honest_when: What a user must heed for that, as the documentation's table says it.
        cost: What it takes beside the forward passes that scoring needs, for the same table.
        answers_only: Whether its collector sees only the answers of a prompt's exemplars; of a
            prompt without any it sees all of it.
        prompt_nll: Whether a choice is made by the NLL of one whole prompt, and tells it under
            every point (`Choice.nlls`): a sweep records the means, and a text without a prompt is
            weighted by the same rule.
        plausibility: The mask that belongs to the method. It is in force where text is written and
            a user gives none; where given text is scored it would leave most answers without any
            probability.
        url: The source paper.
    """

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    scope: ClassVar[str] = "run"
    honesty: ClassVar[str] = ""
    honest_when: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    answers_only: ClassVar[bool] = False
    prompt_nll: ClassVar[bool] = False
    plausibility: ClassVar[float | None] = None
    url: ClassVar[str] = PAPER

    def __post_init__(self) -> None:
        """Check and type each option as its declaration says."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            given = value is not None or field.default is not None
            if "check" in field.metadata and given:
                object.__setattr__(self, field.name, field.metadata["check"](field.name, value))

    @property
    def task_prompts(self) -> int:
        """How many prompts of a task are read, where scope is ``task``."""
        return 0

    def points(self) -> tuple[Weights, ...]:
        """Every point that may be chosen, or the grid that a refined choice lies between.

        None where scope is ``token``: its weights are no points.
        """
        if self.scope == "token":
            return ()
        raise NotImplementedError

    def sources(self, available: Iterable[str]) -> tuple[str, ...]:
        """The sources that may get a weight other than 0, in the order of `SOURCES`.

        Raises:
            TrimixError: One of them was not given.
        """
        used = {n for point in self.points() for n, w in point.by_source().items() if w}
        return present(used, available, self.name)

    def collector(self, names: tuple[str, ...]) -> PromptCollector | None:
        """A fresh collector for one prompt; None if the policy looks at no prompt.

        Args:
            names: The sources, in the order of the logits.
        """
        return None

    def choose(self, collectors: Sequence[PromptCollector]) -> Choice:
        """The point for one prompt (one collector) or for a whole task (many)."""
        return Choice(self.points()[0])

    @property
    def fuses(self) -> bool:
        """Whether the policy has a `fuse` of its own, so that weighted logits are not summed."""
        return type(self).fuse is not Policy.fuse

    def fuse(self, logits: Sequence[Tensor], weights: Tensor, names: Sequence[str]) -> Tensor:
        """One score per token, whose softmax is the distribution that is made of the sources'.

        A policy that has none of its own sums the logits, times their weights.

        Args:
            logits: One ``[N, V]`` tensor per source, fp32, not to be changed.
            weights: ``[N, S]``, as the policy chose them.
            names: The sources, in the order of the logits.

        Returns:
            ``[N, V]``; minus infinity is a token of probability 0, of which some must be left.
        """
        raise NotImplementedError

    def token_weights(self, logits: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """Source weights per position, ``[N, S]``; only where scope is ``token``.

        Args:
            logits: One ``[N, V]`` tensor per source.
            names: The sources, in the order of the logits.
        """
        raise NotImplementedError

    @property
    def options(self) -> dict[str, Any]:
        """The options as JSON values; a grid as a list of [alpha, beta, gamma or None]."""
        fields = dataclasses.fields(self)
        return {field.name: _as_lists(getattr(self, field.name)) for field in fields}

    @classmethod
    def differing(cls, options: Mapping[str, Any]) -> list[str]:
        """How tables tell the options that differ from their defaults, e.g. ``["prompts 7"]``.

        Args:
            options: As a results file records them; those that are missing are the defaults.
        """
        return [
            cls.told(name, options[name])
            for name, usual in cls().options.items()
            if name in options and options[name] != usual
        ]

    @classmethod
    def told(cls, option: str, value: Any) -> str:
        """How a table tells an option that is not the usual one."""
        return f"{option} {value}"

    def record(self) -> dict[str, Any]:
        """What a results file says of the policy: enough to read it where it is not installed."""
        options = self.options
        cls = type(self)
        mine = {} if _REGISTRY.get(self.name) is cls else {"class": place(cls)}
        mask = {} if cls.plausibility is None else {"plausibility": cls.plausibility}
        return {
            "name": self.name,
            **options,
            "label": self.label,
            "honesty": self.honesty,
            "cost": self.cost,
            "differing": self.differing(options),
            **mask,
            **mine,
        }


@dataclasses.dataclass(frozen=True)
class GridPolicy(Policy):
    """What policies that choose among the points of a grid have in common."""

    grid: Any = option(
        "paper",
        "points",
        "`paper` (36 points, α, β ∈ {0.1, 0.3, 0.5, 0.7, 0.9, 1.0}); `simplex:N` (N points from "
        "small_cpt to large_ins, α + β = 1, for which there need be no small_base); or points as "
        "`alpha:beta[:gamma]` joined by `;`.",
        lambda _, value: parse_grid(value),
    )

    scope: ClassVar[str] = "sample"

    def points(self) -> tuple[Weights, ...]:
        """The grid."""
        points: tuple[Weights, ...] = self.grid
        return points

    def without_evidence(self) -> Weights:
        """What is chosen where there is nothing to read: the point nearest to `PRIOR`."""
        return min(
            self.points(), key=lambda p: abs(p.alpha - PRIOR.alpha) + abs(p.beta - PRIOR.beta)
        )

    @classmethod
    def told(cls, option: str, value: Any) -> str:
        """A grid by its size."""
        return f"grid of {len(value)}" if option == "grid" else super().told(option, value)


@dataclasses.dataclass(frozen=True)
class MixturePolicy(Policy):
    """What policies that mix probabilities have in common: p = sum_s w_s softmax(L_s)."""

    def fuse(self, logits: Sequence[Tensor], weights: Tensor, names: Sequence[str]) -> Tensor:
        """Equation above, as logarithms."""
        from trimix_lm_eval.fusion.mixture import mix

        return mix(logits, weights)

    @property
    def updates(self) -> bool:
        """Whether there is an `update`."""
        return type(self).update is not MixturePolicy.update

    def update(self, weights: Tensor, logprobs: Tensor, names: Sequence[str]) -> Tensor:
        """The weights of the next token, now that a token is there; scope is ``sample``.

        A policy without it keeps the weights that it chose. What is chosen holds for the token
        after the prompt, and from there on each token that is scored or generated is told.

        Args:
            weights: ``[N, S]`` in force for the token, not to be changed.
            logprobs: ``[N, S]`` log-probability of that token by each source, natural logarithm.
            names: The sources, in the order of the weights.

        Returns:
            ``[N, S]``; each row by its own row of the arguments.
        """
        raise NotImplementedError


_REGISTRY: dict[str, type[Policy]] = {}
_P = TypeVar("_P", bound=type[Policy])


def register(cls: _P) -> _P:
    """Class decorator: make a policy of this package available under its name."""
    _REGISTRY[cls.name] = cls
    return cls


def registered() -> tuple[type[Policy], ...]:
    """The policies of this package."""
    return tuple(_REGISTRY.values())


def ours(policy: str) -> type[Policy] | None:
    """The class of a policy of this package, or None; imports nothing, whatever the name is."""
    return _REGISTRY.get(policy)


def _as_lists(value: Any) -> Any:
    """A value with lists in place of tuples, as JSON has them."""
    return [_as_lists(x) for x in value] if isinstance(value, tuple) else value


def place(cls: type) -> str:
    """Where a class is, as ``policy=`` takes it: ``package.module:Class``."""
    return f"{cls.__module__}:{cls.__qualname__}"


def parse_grid(text: Any) -> tuple[Weights, ...]:
    """Read a grid: ``paper``, ``simplex:9``, ``0.1:0.9;0.3:1.0``, or a list of such or numbers.

    Raises:
        TrimixError: It is none of these, or empty.
    """
    if text == "paper":
        return PAPER_GRID
    if isinstance(text, str) and text.startswith("simplex:"):
        steps = whole("grid=simplex", text.removeprefix("simplex:"), least=2, most=1001) - 1
        return tuple(Weights(i / steps, 1 - i / steps) for i in range(steps + 1))
    hint = (
        "write grid=paper, grid=simplex:9, or points as alpha:beta[:gamma] joined by ';', e.g. "
        f"0.1:0.9;0.3:1.0; numbers from {-LARGEST:g} to {LARGEST:g}"
    )
    items = text.split(";") if isinstance(text, str) else text
    points = []
    try:
        for item in items:
            parts = item.split(":") if isinstance(item, str) else item
            numbers = [float(x) for x in parts if x is not None]
            if len(numbers) not in (2, 3) or not Weights(*numbers).in_range():
                raise ValueError
            points.append(Weights(*numbers))
    except (TypeError, ValueError, OverflowError):
        raise TrimixError(f"grid={quoted(text)} is not a list of points.", hint) from None
    if not points:
        raise TrimixError("The grid is empty.", hint)
    return tuple(points)


def present(used: Iterable[str], available: Iterable[str], policy: str) -> tuple[str, ...]:
    """The used sources in the order of `SOURCES`; an error names those that are missing."""
    given, wanted = set(available), set(used)
    missing = [name for name in SOURCES if name in wanted and name not in given]
    if missing:
        plural = "the sources" if len(missing) > 1 else "the source"
        alone = " (or policy=large_ins for that model alone)" if "large_ins" in given else ""
        if missing == ["small_base"] and {"large_ins", "small_cpt"} <= given:
            alone = " (or, of a policy with a grid, grid=simplex:9, which needs none)"
        raise TrimixError(
            f"policy={policy} needs {plural} {' and '.join(missing)}, not given.",
            f"add {','.join(f'{name}=<Hub id or folder>' for name in missing)}{alone}",
        )
    return tuple(name for name in SOURCES if name in wanted)
