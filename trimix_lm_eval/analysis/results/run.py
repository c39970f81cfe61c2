"""A run: one results file, what to call it, and how it departs from the published protocol."""

from __future__ import annotations

from dataclasses import dataclass

from trimix_lm_eval.analysis.results import labels, protocol
from trimix_lm_eval.analysis.results.results_file import ResultsFile


@dataclass(frozen=True, eq=False)
class Run(ResultsFile):
    """One results file with its names."""

    @property
    def label(self) -> str:
        """What to call it in a table: the policy or point, or the model's name."""
        return labels.label(self)

    @property
    def title(self) -> str:
        """The same with the policy as a report calls it."""
        return labels.title(self)

    @property
    def honesty(self) -> str:
        """How the policy is honest: label_free, needs_exemplars, oracle, or empty if unknown."""
        return labels.honesty(self)

    @property
    def circumstances(self) -> str:
        """What changes the numbers of any point, as a mask or a shorter context do."""
        return ", ".join(labels.circumstances(self))

    @property
    def variant(self) -> str:
        """How the whole run departs from the published protocol; empty if it does not.

        Runs of one label with different variants are different rows of a table.
        """
        limit = self.config.get("limit")
        parts = [f"limit {limit:g}"] if limit else []
        if not limit and any(list(protocol.documents(self, task)) for task in self.scores):
            parts.append("part of the documents")
        for task in self.scores:
            parts += protocol.settings(self, task)
        return ", ".join(dict.fromkeys(parts))

    def deviations(self, task: str) -> list[str]:
        """Why the numbers of a task or group do not compare with those of the published protocol.

        Returns:
            Short phrases for a footnote; empty if nothing was changed. Of tasks that are not ours
            only what lm-eval itself records is known.
        """
        why = [*protocol.documents(self, task)]
        for name in self.leaves(task) or [task]:
            why += protocol.settings(self, name)
        return list(dict.fromkeys(why))
