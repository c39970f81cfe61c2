"""Files of a data set on the Hub: downloaded, or looked for without downloading."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from trimix_lm_eval.loading import hub
from trimix_lm_eval.utils.errors import TrimixError


class _State(NamedTuple):
    """What is known of a repository.

    Attributes:
        commit: What its revision stands for, for the whole of this process: all files of a run are
            of one commit.
        reachable: Whether the Hub answers at all.
        names: Its files; None if the Hub does not say.
    """

    commit: str
    reachable: bool
    names: frozenset[str] | None = None


@functools.cache
def state(repository: hub.Repository) -> _State:
    """Ask the Hub about a repository, once per process."""
    try:
        info = HfApi().dataset_info(repository.id, revision=repository.revision)
    except (HfHubHTTPError, HFValidationError):
        return _State(repository.revision, True)  # downloading explains what is wrong
    except Exception:  # whatever the HTTP library raises without a network
        return _State(repository.revision, False)
    names = frozenset(file.rfilename for file in info.siblings or [])
    return _State(info.sha or repository.revision, True, names)


def download(repository: hub.Repository, name: str) -> Path:
    """Fetch one file, from the Hub or its cache.

    Raises:
        TrimixError: It cannot be had; the message says why and what to do.
    """
    known = state(repository)
    try:
        path = _fetch(repository, name, known.commit, not known.reachable)
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        try:
            hub.explain(error, repository, name)
        except hub.MissingFile:
            raise _missing(repository, name) from error
    if known.commit != repository.revision:
        _remember(repository, path.parents[name.count("/")], known.commit)
    return path


def reach(repository: hub.Repository, names: Iterable[str]) -> str:
    """See whether this account could download files.

    Returns:
        ``Hub``, or ``cache`` if the Hub does not answer and they are in its cache.

    Raises:
        TrimixError: It could not.
    """
    known = state(repository)
    if known.reachable:
        refusal = _refusal(repository)
        if refusal:
            raise refusal
        for name in names:
            if known.names is not None and name not in known.names:
                raise _missing(repository, name)
        return "Hub"
    for name in names:
        try:
            _fetch(repository, name, known.commit, cached=True)
        except LocalEntryNotFoundError as error:
            hub.explain(error, repository, "its data")
    return "cache"


def _fetch(repository: hub.Repository, name: str, commit: str, cached: bool) -> Path:
    """The client's download; `cached` for what it has already, else it would retry for long."""
    return Path(
        hf_hub_download(
            repository.id, name, repo_type="dataset", revision=commit, local_files_only=cached
        )
    )


def _missing(repository: hub.Repository, name: str) -> TrimixError:
    return TrimixError(
        f"{repository} has no file {name}.",
        "give the revision that has it as data_revision in --metadata, or a local copy as data_dir",
    )


def _remember(repository: hub.Repository, snapshot: Path, commit: str) -> None:
    """Note in the cache what a branch stands for, as the client does when it follows one itself.

    Without the note a later run that cannot reach the Hub would not find the files.
    """
    note = snapshot.parent.parent / "refs" / repository.revision
    with contextlib.suppress(OSError):  # a cache that may only be read
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(commit)


@functools.cache
def _refusal(repository: hub.Repository) -> TrimixError | None:
    """Why this account may not read a repository; the Hub is asked once per process."""
    try:
        HfApi().auth_check(repository.id, repo_type="dataset")
        HfApi().dataset_info(repository.id, revision=repository.revision)
    except (HfHubHTTPError, HFValidationError) as error:
        try:
            hub.explain(error, repository, "its data")
        except TrimixError as refusal:
            return refusal
    return None
