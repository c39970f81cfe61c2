"""Which checkpoint to go on from: the newest that is whole.

A process can be killed at any moment, also while it writes a checkpoint or deletes an old one, and
a disk can damage what was written: a checkpoint is sealed after its last file (see `seals`).
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from trimix_lm_eval.training.cpt import seals
from trimix_lm_eval.utils.errors import TrimixError

_NAME = re.compile(r"checkpoint-\d+")


def newest(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps; newer ones, which are not whole, are deleted.

    One that was killed before its seal is nothing unusual. One that is damaged is named.

    Raises:
        TrimixError: The best one, of which the finished model would be made, is damaged.
    """
    there = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    for checkpoint in sorted(there, key=steps_of, reverse=True):
        found = seals.faults(checkpoint)
        if found == []:
            best = _best(checkpoint)
            # One that is gone was deleted for a better one, which is trained again.
            if best and (folder / best).is_dir():
                check_best(folder / best)
            return checkpoint
        if found:
            bad = checkpoint / found[0]
            print(f"warning: {bad} is damaged: that checkpoint is not used", flush=True)
        shutil.rmtree(checkpoint)
    return None


def check_best(best: Path) -> None:
    """See whether the best checkpoint, which is the trained model, is there and whole.

    transformers takes the last weights in place of one that is gone, and says so in a warning only.
    """
    found = seals.faults(best)
    if found == []:
        return
    raise TrimixError(
        f"{best / (found or [seals.SEAL])[0]} is damaged or gone, and that checkpoint is the best.",
        f"bring it back from a copy, or delete {best.parent} to train from the beginning",
    )


def _best(checkpoint: Path) -> str:
    """The name of the best checkpoint when this one was written; empty if it does not say."""
    state = checkpoint / "trainer_state.json"
    if not state.exists():
        return ""
    found = json.loads(state.read_text(encoding="utf-8")).get("best_model_checkpoint")
    return Path(found).name if found else ""


def steps_of(checkpoint: Path) -> int:
    """How many steps a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])
