"""The folder of a run: whose it is, that no other run writes to it, what a full disk is called."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from trimix_lm_eval.loading.provenance import compared
from trimix_lm_eval.training.cpt import seals
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError, first_line

#: What safetensors and torch make of a disk that is full, or of a file that is too large for it;
#: the latter in two ways, by where the disk ends.
_DISK_TEXTS = ("(os error ", "PytorchStreamWriter failed", "unexpected pos")


def claim(config: Config, identity: Mapping[str, Any]) -> None:
    """Make the folder this run's, or refuse one that holds something else."""
    file = config.work / "run.json"
    hint = "give this run another output, or delete that folder"
    known = seals.read_record(file)
    differences = list(compared(known, json.loads(json.dumps(identity)))) if known else []
    if known and not differences:
        return
    if (config.work / "data").is_dir():
        if known is None:
            raise TrimixError(
                f"{file} is damaged or missing: nothing tells what {config.output} holds.", hint
            )
        shown = "; ".join(differences[:5])
        raise TrimixError(f"{config.output} holds another run: {shown}.", hint)
    others = sorted(path.name for path in config.output.iterdir() if path != config.work)
    if others:
        raise TrimixError(f"{config.output} holds {others[0]}, which no such run has made.", hint)
    seals.write_record(file, identity)


@contextlib.contextmanager
def alone(config: Config, place: DistributedEnv) -> Iterator[None]:
    """Keep other runs out of the folder; the system lets go of it when this process ends."""
    if place.rank:
        yield
        return
    from filelock import FileLock, Timeout

    config.work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(config.work / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise TrimixError(
            f"{config.output} is in use by another run.", "wait for it, or give another output"
        ) from error


@contextlib.contextmanager
def disk_named(config: Config) -> Iterator[None]:
    """Say of which file the system says what: a full disk, no permission, a folder that is gone."""
    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads what is printed: no matter of files
    except Exception as error:
        if not _of_disk(error):
            raise
        raise TrimixError(
            f"{config.output} cannot be written: {first_line(error)}.",
            "make room, see to its permissions, or give another output; the same command goes on "
            "from what is there",
        ) from error


def _of_disk(error: Exception) -> bool:
    """Whether the system, not a library, refuses to read or write."""
    if isinstance(error, OSError):
        return error.errno is not None
    return any(text in str(error) for text in _DISK_TEXTS)
