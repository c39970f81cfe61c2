"""A guard for lm-eval's response cache.

lm-eval keys ``--use_cache`` on the request alone, so two weightings that share a file would return
each other's scores in silence. `Guard` writes a fingerprint into the file and refuses another's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.loading.provenance import compared, text_digest
from trimix_lm_eval.utils.errors import TrimixError

_FINGERPRINT = "trimix:fingerprint"
_TASK_POINT = "trimix:task-point:"
_CHOSEN = "trimix:chosen:"
_FINISHED = "trimix:finished:"


class TaskPoint(NamedTuple):
    """The point of a task and what it was chosen from.

    Attributes:
        weights: The point.
        drawn: Of each prompt that was read: its place in the draw, and a digest of its text.
    """

    weights: Weights
    drawn: dict[int, str]

    def fits(self, place: int, text: str, most: int) -> bool:
        """Whether a prompt that arrives now is of the set that the point was chosen from.

        Args:
            place: Its place in the draw; the lowest ``most`` were read.
            text: The prompt.
            most: How many prompts are read at most.
        """
        if place in self.drawn:
            return self.drawn[place] == text_digest(text)
        return len(self.drawn) >= most and place > max(self.drawn)


class Guard:
    """Our own entries in lm-eval's response cache.

    Args:
        store: The cache file, opened by lm-eval; None without ``--use_cache``.
    """

    def __init__(self, store: MutableMapping[str, Any] | None = None) -> None:
        self.store: MutableMapping[str, Any] = {} if store is None else store

    def claim(self, description: dict[str, Any]) -> None:
        """Make the file ours, or make sure that it was.

        Args:
            description: See `provenance.describe`; paths do not count, digests and commits do.

        Raises:
            TrimixError: It holds the answers of another model, or of this one weighted otherwise.
        """
        mine = json.loads(json.dumps(description))
        theirs = self.store.get(_FINGERPRINT)
        where = getattr(self.store, "filename", "the cache file")
        hint = "give this run a --use_cache path of its own, or delete that file"
        if theirs is None:
            if len(self.store):
                raise TrimixError(f"{where} holds the answers of a model other than trimix.", hint)
            self.store[_FINGERPRINT] = mine
            return
        differences = list(compared(theirs, mine))
        if differences:
            shown = "; ".join(differences[:5])
            raise TrimixError(
                f"{where} holds the answers of another run: {_short(theirs)}. This run is "
                f"{_short(mine)}. They differ in {shown}.",
                hint,
            )

    @property
    def is_file(self) -> bool:
        """Whether there is a cache file, with answers that outlive this process."""
        return not isinstance(self.store, dict)

    def task_points(self) -> dict[str, TaskPoint]:
        """The stored points of ``ppl_task``, by task."""
        found = self._under(_TASK_POINT)
        return {t: TaskPoint(Weights(*point), dict(drawn)) for t, (point, drawn) in found.items()}

    def keep_task_point(self, task: str, chosen: TaskPoint) -> None:
        """Store a task's point before any request is scored with it."""
        self.store[_TASK_POINT + task] = (tuple(chosen.weights), chosen.drawn)

    def chosen(self) -> Iterator[tuple[str, int, str]]:
        """The labels that earlier runs of this file chose: (task, document, label)."""
        for key, label in self._under(_CHOSEN).items():
            task, _, doc = key.rpartition(":")
            yield task, int(doc), label

    def keep_chosen(self, task: str, doc: int, label: str) -> None:
        """Store the label chosen for a document."""
        self.store[f"{_CHOSEN}{task}:{doc}"] = label

    def finish_reasons(self) -> dict[tuple[Any, ...], str]:
        """Why texts of earlier runs of this file ended, by what tells their requests apart."""
        found = self._under(_FINISHED)
        return {tuple(json.loads(name)): str(reason) for name, reason in found.items()}

    def keep_finish_reason(self, name: Sequence[Any], reason: str) -> None:
        """Store why the text of a request ended.

        Args:
            name: What tells the request from all others, as JSON can write it.
            reason: Its ``finish_reason``.
        """
        self.store[_FINISHED + json.dumps(name)] = reason

    def _under(self, prefix: str) -> dict[str, Any]:
        keys = [key for key in self.store if key.startswith(prefix)]
        return {key.removeprefix(prefix): self.store[key] for key in keys}


def _short(description: dict[str, Any]) -> str:
    """One line that tells a user which run this was."""
    policy = description["policy"]
    options = {k: v for k, v in policy.items() if k in ("alpha", "beta", "gamma", "refine")}
    sources = ", ".join(
        f"{role}={s['path']}@{s['commit'] or s['digest'] or s['revision']} ({s['dtype']})"
        for role, s in description["sources"].items()
    )
    extra = "".join(f", {k}={v}" for k, v in options.items() if v is not None)
    return f"policy={policy['name']}{extra} of {sources}"
