"""Files of a data set on the Hub: downloaded, or looked for without downloading."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from trimix_lm_eval.loading import hub
from trimix_lm_eval.utils.errors import TrimixError

#: What the Hub says of a repository, asked once per process: all files of a run are of one commit.
state = functools.cache(hub.ask)


def commit_of(repository: hub.Repository) -> str:
    """What the revision stands for, for the whole of this process; itself if the Hub is silent."""
    return state(repository).commit or repository.revision


def download(repository: hub.Repository, name: str) -> Path:
    """Fetch one file, from the Hub or its cache."""
    commit = commit_of(repository)
    try:
        path = hub.fetch(repository, name, commit, cached=not state(repository).reachable)
    except hub.ERRORS as error:
        try:
            hub.explain(error, repository, name)
        except hub.MissingFile:
            raise _missing(repository, name) from error
    if commit != repository.revision:
        _remember(repository, path.parents[name.count("/")], commit)
    return path


def reach(repository: hub.Repository, names: Iterable[str]) -> str:
    """See whether this account could download files: ``Hub``, or ``cache`` if the Hub is silent.

    Raises:
        TrimixError: It could not.
    """
    known = state(repository)
    if known.reachable:
        refusal = _refusal(repository)
        if refusal:
            raise refusal
        for name in names:
            if known.sizes is not None and name not in known.sizes:
                raise _missing(repository, name)
        return "Hub"
    for name in names:
        try:
            hub.fetch(repository, name, commit_of(repository), cached=True)
        except LocalEntryNotFoundError as error:
            hub.explain(error, repository, "its data")
    return "cache"


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
