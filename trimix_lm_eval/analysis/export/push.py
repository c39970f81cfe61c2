"""Upload exported files to a repository of the Hub: only when asked, and never in silence.

What is uploaded is shown first, with what it replaces. A failure is one message; the local files
stay as they are, and the same command tries again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimix_lm_eval.analysis.export import model_index
from trimix_lm_eval.analysis.export.origins import is_hub_id
from trimix_lm_eval.utils.errors import TrimixError, first_line
from trimix_lm_eval.utils.paths import printable

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, HfApi

README = "README.md"


def ready(repo: str, push: bool = True) -> None:
    """See before anything is written that an id is one, and that there is a token to `push` with.

    Raises:
        TrimixError: One is not so.
    """
    from huggingface_hub import get_token

    if not is_hub_id(repo):
        raise TrimixError(
            f"--repo {printable(repo)!r} is no id of a repository.", "give owner/name"
        )
    if push and get_token() is None:
        raise TrimixError(
            "--push needs a token of the Hub with write access, and there is none.",
            "run `hf auth login`, or set HF_TOKEN",
        )


def push(files: Mapping[str, str], repo: str, *, yes: bool, pull_request: bool) -> str:
    """Upload files, content by path, as one commit; where it can be looked at.

    ``model-index.yaml`` is not uploaded as a file but goes into the metadata of the repository's
    README.md, beside what is there.

    Args:
        files: Content by path.
        repo: ``owner/name``.
        yes: Do not ask.
        pull_request: Open a pull request in place of a commit.

    Raises:
        TrimixError: The user said no, or the Hub did.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _explained(repo):
        found = api.model_info(repo)
        there = {sibling.rfilename for sibling in found.siblings or ()}
        old, replaced = "", 0
        if model_index.NAME in files:
            old = _readme(api, repo, found.sha) if README in there else ""
            text, replaced = _merged(old, files[model_index.NAME], repo)
            files = {README: text}
    print(f"To {api.endpoint}/{repo}{', as a pull request' if pull_request else ''}:")
    for path, text in files.items():
        state = "replaces" if path in there else "new"
        if path == README and old:
            state = f"metadata only; {replaced} of its results are replaced"
        print(f"  {path} ({len(text.encode())} bytes, {state})")
    if not yes:
        _ask()
    with _explained(repo):
        done = api.create_commit(
            repo,
            [CommitOperationAdd(path, text.encode()) for path, text in files.items()],
            commit_message="Add evaluation results of TriMix",
            create_pr=pull_request,
            # Of a README that somebody has changed meanwhile nothing is lost.
            parent_commit=found.sha,
        )
    return str(done.pr_url or done.commit_url)


def _readme(api: HfApi, repo: str, commit: str | None) -> str:
    """The README as it is at a commit; one that cannot be had is an error, and not an empty one."""
    return Path(api.hf_hub_download(repo, README, revision=commit)).read_text(encoding="utf-8")


def _merged(readme: str, index: str, repo: str) -> tuple[str, int]:
    """A README with our results in its metadata, and how many of its own they replace.

    huggingface_hub's `metadata_update` is not used: it takes a README that it cannot fetch for
    none, and writes a template over it; and of two numbers of one metric it keeps both.
    """
    import yaml
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        card: Any = ModelCard(readme)
        before = list(card.data.eval_results or [])
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise _failed(
            f"the metadata of {repo}'s README.md cannot be read: {first_line(error)}",
            "repair them there first",
        ) from error
    name, ours = model_index_to_eval_results(yaml.safe_load(index)["model-index"])
    mine = {_identity(result) for result in ours}
    kept = [result for result in before if _identity(result) not in mine]
    card.data.model_name = card.data.model_name or name
    card.data.eval_results = [*kept, *ours]
    return str(card), len(before) - len(kept)


def _identity(result: EvalResult) -> tuple[Any, ...]:
    return (*result.unique_identifier, result.metric_type, result.metric_name)


def _ask() -> None:
    try:
        answer = input("Upload this? [y/N] ")
    except EOFError as error:
        raise TrimixError(
            "Nothing was uploaded: there is nobody to ask.", "say --yes if it is to be uploaded"
        ) from error
    if answer.strip().casefold() not in ("y", "yes"):
        raise TrimixError("Nothing was uploaded, as you said.")


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a message."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except TrimixError:
        raise
    except RepositoryNotFoundError as error:
        raise _failed(
            f"{repo} is not there, or this token may not see it.",
            f"create it with `hf repos create {repo}`, or correct --repo or the token",
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise _failed(
                f"the Hub does not let this token write to {repo} ({status}).",
                "run `hf auth login` with a token that has write access, or try --pr",
            ) from error
        raise _failed(
            f"the Hub answered {status}: {first_line(error)}", "try again later"
        ) from error
    # Its transport's errors have other names in other versions of huggingface_hub.
    except Exception as error:
        raise _failed(
            f"{type(error).__name__}: {first_line(error)}",
            "check the network, HF_ENDPOINT and proxy",
        ) from error


def _failed(what: str, hint: str) -> TrimixError:
    return TrimixError(
        f"Nothing was uploaded: {what}",
        f"{hint}; the files are kept here, and the same command goes on from them",
    )
