"""Read from the Hugging Face Hub; if something cannot be had, say why in words to act on.

All that this package reads there goes through here: models (`preflight`), the data of benchmarks
(`tasklib`), text to train on (`training`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from trimix_lm_eval.utils.errors import TrimixError, first_line

#: Where the conditions of a gated repository are accepted, whatever mirror serves the files.
_WEBSITE = "https://huggingface.co"

#: What to do instead of using the Hub.
_LOCAL = {
    "model": "put the model's files into a local folder and give its path instead of the Hub id",
    "dataset": "download the files elsewhere and name their folder with "
    '--metadata \'{"data_dir": "…"}\' or TRIMIX_DATA_DIR',
}

#: What huggingface_hub raises where a file cannot be had, to be given to `explain`.
ERRORS = (OSError, EntryNotFoundError, HFValidationError)


@contextmanager
def offline() -> Iterator[None]:
    """Ask the cache only, as with ``HF_HUB_OFFLINE=1``, for the time of a ``with`` statement."""
    from datasets import config  # which has read the other's value once and for all

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


class MissingFile(Exception):  # noqa: N818 - not a failure: often another name is tried next
    """The repository can be read, but has no such file."""


class Repository(NamedTuple):
    """A repository on the Hub, with what it is for: ``large_ins``, or the name of a benchmark."""

    role: str
    id: str
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        """Its role and where it is, e.g. ``large_ins (org/name@v2)``."""
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.role} ({self.id}{at})"

    @property
    def page(self) -> str:
        """Its address for people."""
        return f"{_WEBSITE}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"


class State(NamedTuple):
    """What the Hub says of a repository, whose files it may name without their sizes.

    ``commit`` and ``sizes`` are None if it does not say; ``cause`` is why it does not answer.
    """

    commit: str | None
    reachable: bool
    sizes: Mapping[str, int | None] | None = None
    cause: str = ""


def ask(repository: Repository) -> State:
    """Ask the Hub about a repository.

    Nothing is raised: where something is wrong, `fetch` fails for the same reason, and `explain`
    tells it.
    """
    try:
        info: Any = HfApi().repo_info(
            repository.id,
            repo_type=repository.kind,
            revision=repository.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    except (HfHubHTTPError, HFValidationError):
        return State(None, True)
    except Exception as error:  # whatever the HTTP library raises without a network
        return State(None, False, cause=type(error).__name__)
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    return State(info.sha, True, sizes)


def fetch(
    repository: Repository, name: str, revision: str, subfolder: str = "", cached: bool = False
) -> Path:
    """One file of a repository, from the Hub or its cache on this machine.

    ``cached`` looks into the cache only: without a network the client would try for half a minute
    before.

    Raises:
        OSError: It cannot be had; so do the others of `ERRORS`.
    """
    return Path(
        hf_hub_download(
            repository.id,
            name,
            subfolder=subfolder or None,
            repo_type=repository.kind,
            revision=revision,
            local_files_only=cached,
        )
    )


def explain(error: Exception, repository: Repository, file: str, cause: str = "") -> NoReturn:
    """Raise what a user can act on for an error of huggingface_hub, which looked for a file.

    The order matters: a gated repository is also a missing one, and a file that was not found
    in the cache is also a missing file. ``cause`` is why the Hub does not answer, if that is known.

    Raises:
        MissingFile: The repository has no such file.
        TrimixError: All else.
    """
    if isinstance(error, GatedRepoError):
        raise TrimixError(
            f"{repository} is gated, and this account has not been granted access.",
            f"accept the conditions at {repository.page}, then run `hf auth login` "
            "(or set HF_TOKEN)",
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        local = ", and no such local folder" if repository.kind == "model" else ""
        raise TrimixError(
            f"{repository}: there is no such repository on the Hub{local}; or it is private.",
            "check the spelling; if it is private, run `hf auth login` (or set HF_TOKEN)",
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise TrimixError(
            f"{repository.role}: the repository {repository.id} has no revision "
            f"{repository.revision!r}.",
            f"give a branch, tag or commit listed at {repository.page}/commits",
        ) from error
    if isinstance(error, LocalEntryNotFoundError):
        raise _unreachable(cause, repository, file) from error
    if isinstance(error, EntryNotFoundError):
        raise MissingFile(file) from error
    if isinstance(error, HFValidationError):
        raise TrimixError(
            f"{repository.role}: {repository.id!r} is neither a local folder nor a Hub id.",
            "give an existing folder, or owner/name",
        ) from error
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        raise TrimixError(
            f"{repository}: the Hub refuses this machine's token.",
            "run `hf auth login` again (or correct HF_TOKEN)",
        ) from error
    raise TrimixError(
        f"{repository}: {file} could not be fetched: {first_line(error)}",
        f"try again later, or {_LOCAL[repository.kind]}",
    ) from error


def _unreachable(cause: str, repository: Repository, file: str) -> TrimixError:
    """The error for a file that is not in the cache and cannot be downloaded."""
    local = _LOCAL[repository.kind]
    if constants.HF_HUB_OFFLINE:
        return TrimixError(
            f"{repository} is not in the cache, and HF_HUB_OFFLINE forbids to download it.",
            f"unset HF_HUB_OFFLINE, or {local}",
        )
    cause = f" ({cause})" if cause else ""
    taken = (
        f" (There is no local folder {repository.id}, so it was taken for a Hub id.)"
        if repository.kind == "model"
        else ""
    )
    return TrimixError(
        f"{repository}: the Hub cannot be reached{cause}, and {file} is not in the cache.{taken}",
        f"check the network, proxy and HF_ENDPOINT, or {local}",
    )
