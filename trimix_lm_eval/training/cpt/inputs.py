"""What a run reads: the sources of its text, known by their content."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.training.cpt import seals, texts
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.utils.errors import TrimixError


class Inputs(NamedTuple):
    """What there is to be read.

    Attributes:
        text: Of the language.
        english: Of English.
        kept_out: The held-out files, by key of the config.
    """

    text: list[texts.Source]
    english: list[texts.Source]
    kept_out: dict[str, texts.Source]

    def identity(self) -> dict[str, Any]:
        """What of it the weights depend on.

        Of the Hub's data sets the name, not the commit: text is read once, and a run that has been
        read for must go on where the Hub cannot be reached.
        """
        known = {"text": self.text, "english": self.english}
        found: dict[str, Any] = {
            key: [one.sha256 or one.name for one in some] for key, some in known.items()
        }
        return {**found, **{f"{key} file": one.sha256 for key, one in self.kept_out.items()}}

    def check_unchanged(self) -> None:
        """See whether the files are what they were when they were found.

        Raises:
            TrimixError: One has changed, so that nobody knows what was read.
        """
        for source in (*self.text, *self.english, *self.kept_out.values()):
            if source.path and seals.sha256(source.path) != source.sha256:
                raise TrimixError(
                    f"{source.name} has changed while it was read.",
                    "run the same command again when nothing writes to it any more",
                )


def look(config: Config) -> Inputs:
    """Find the sources of a run.

    Raises:
        TrimixError: Something is not there.
    """
    kept_out = {}
    for key, path in (("held_out", config.held_out), ("test", config.test)):
        if isinstance(path, Path):
            kept_out[key] = texts.source_of(path, config.text_field, key)
    return Inputs(
        texts.sources(config.text, config.text_field, "text", [config.output]),
        texts.sources(config.english, config.text_field, "english", [config.output]),
        kept_out,
    )
