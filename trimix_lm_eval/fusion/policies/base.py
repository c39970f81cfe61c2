"""What a weighting policy is, and the registry that finds one by its name.

The policies themselves are in `policies.py`, which is the module to read and to extend.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from trimix_lm_eval.fusion.collectors import Choice, PromptCollector
from trimix_lm_eval.fusion.weights import PAPER_GRID, SOURCES, Weights
from trimix_lm_eval.utils.errors import TrimixError, unknown

PAPER = "https://arxiv.org/abs/2604.18106"


@dataclasses.dataclass(frozen=True)
class Policy:
    """Base of all policies: one point for everything, chosen in advance.

    Attributes:
        name: The name it is registered under.
        scope: What one choice holds for: ``run``, ``task``, ``prompt`` or ``token``.
        url: The source paper.
        answers_only: Whether its collector sees only the answers of a prompt's exemplars; of a
            prompt without any it sees all of it.
    """

    name: ClassVar[str] = ""
    answers_only: ClassVar[bool] = False
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

    def points(self) -> tuple[Weights, ...]:
        """Every point that may be chosen (corners, for a continuous choice)."""
        raise NotImplementedError

    def sources(self, available: Iterable[str]) -> tuple[str, ...]:
        """The sources that may get a weight other than 0, in the order of `SOURCES`.

        Raises:
            TrimixError: One of them was not given.
        """
        used = {n for point in self.points() for n, w in point.by_source().items() if w}
        return present(used, available, self.name)

    def reader(self, names: tuple[str, ...]) -> PromptCollector | None:
        """A fresh reader for one prompt; None if the policy looks at no prompt."""
        return None

    def choose(self, readers: Sequence[PromptCollector]) -> Choice:
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


def parse_grid(text: Any) -> tuple[Weights, ...]:
    """Read a grid: ``paper``, ``0.1:0.9;0.3:1.0``, or a list of pairs, triples or such strings.

    Raises:
        TrimixError: It is none of these, or empty.
    """
    if text == "paper":
        return PAPER_GRID
    hint = "write grid=paper, or points as alpha:beta[:gamma] joined by ';', e.g. 0.1:0.9;0.3:1.0"
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
        raise TrimixError(f"grid={text!r} is not a list of points.", hint) from None
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
        raise TrimixError(
            f"policy={policy} needs {plural} {' and '.join(missing)}, not given.",
            f"add {','.join(f'{name}=<Hub id or folder>' for name in missing)}{alone}",
        )
    return tuple(name for name in SOURCES if name in wanted)


def number(option: str, value: Any) -> float:
    """A finite number, or an error that names the option."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise TrimixError(f"{option}={value!r} is not a number.", f"e.g. {option}=0.3")
    return found
