"""Which files a repository or a local folder has; if it cannot be read, why and what to do.

Files are asked of huggingface_hub itself: transformers wraps its errors into OSErrors that no
longer tell a gated repository from a missing one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants

from trimix_lm_eval.loading import hub
from trimix_lm_eval.loading.preflight.files import check_folder
from trimix_lm_eval.loading.settings import SourceSpec
from trimix_lm_eval.utils.errors import TrimixError

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    # Tokenizers with code of their own name their files as they like, but not this one.
    "tokenizer_config.json",
)


class Files(NamedTuple):
    """The files of one model.

    Attributes:
        main: ``config.json``, or the GGUF file, on this machine.
        commit: The commit that the revision stands for; None for a local folder.
        sizes: Bytes per file name, relative to the model's folder; None where unknown.
        complete: Whether `sizes` lists all there is. Without a network it may not.
        cached: Whether the Hub is out of reach, so that only the cache need be asked.
    """

    main: Path
    commit: str | None
    sizes: dict[str, int | None]
    complete: bool
    cached: bool = False

    def arguments(self, spec: SourceSpec) -> dict[str, Any]:
        """What ``from_pretrained`` needs to read these very files."""
        arguments = spec.hub_arguments()
        if self.commit:
            arguments["revision"] = self.commit
        if self.cached:
            arguments["local_files_only"] = True
        return arguments

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer may be among the files."""
        return not self.complete or any(name in self.sizes for name in _TOKENIZERS)

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of the weights as stored (safetensors if there are any); None if unknown."""
        for suffix in _WEIGHTS:
            sizes = [size for name, size in self.sizes.items() if name.endswith(suffix)]
            if sizes:
                return None if None in sizes else sum(s for s in sizes if s is not None)
        return None


def label(spec: SourceSpec) -> str:
    """How messages name a source: its role and where it comes from."""
    return str(_repository(spec))


def _repository(spec: SourceSpec) -> hub.Repository:
    return hub.Repository(spec.name, spec.path, spec.revision)


def locate(spec: SourceSpec) -> Files:
    """Find a model's files; download its config (or its GGUF file, which contains the config).

    Raises:
        TrimixError: They cannot be reached, or are not those of a transformers model.
    """
    main = spec.gguf_file or "config.json"
    files = _local(spec, main) if os.path.isdir(spec.path) else _hub(spec, main)
    if files.complete and not any(name.endswith(_WEIGHTS) for name in files.sizes):
        raise TrimixError(
            f"{label(spec)} has a {main} but no weights.",
            "give a repository or folder that contains model.safetensors or its shards",
        )
    return files


def locate_tokenizer(spec: SourceSpec) -> Files:
    """Find the files of a repository or folder that is used for its tokenizer only."""
    nothing = Files(Path(spec.path), None, {}, False)
    if os.path.isdir(spec.path):
        return nothing
    known = hub.ask(_repository(spec))
    try:
        path = _download(spec, "tokenizer_config.json", known)
    except hub.MissingFile:
        return nothing  # an old repository; its tokenizer may still load
    return Files(path, _commit(path), {}, False, not known.reachable)


def _local(spec: SourceSpec, main: str) -> Files:
    """The files of a local folder."""
    folder = Path(spec.path, spec.subfolder)
    if not (folder / main).is_file():
        raise _no_model(spec, main)
    check_folder(label(spec), folder, spec.gguf_file)
    return Files(folder / main, None, _listing(folder), True)


def _hub(spec: SourceSpec, main: str) -> Files:
    """The files of a repository on the Hub, or of its copy in the cache."""
    known = hub.ask(_repository(spec))
    try:
        path = _download(spec, main, known)
    except hub.MissingFile as error:
        raise _no_model(spec, main) from error
    if known.sizes is None:
        # All that is known is the cache; where downloads are forbidden, that is all there is.
        complete = bool(constants.HF_HUB_OFFLINE)
        return Files(path, _commit(path), _listing(path.parent), complete, not known.reachable)
    prefix = f"{spec.subfolder.strip('/')}/" if spec.subfolder else ""
    sizes = {
        name.removeprefix(prefix): size
        for name, size in known.sizes.items()
        if name.startswith(prefix)
    }
    return Files(path, _commit(path), sizes, True)


def _download(spec: SourceSpec, name: str, known: hub.State) -> Path:
    """One file of a repository, from the Hub or the cache."""
    if os.path.isabs(spec.path) or spec.path.startswith(".") or spec.path.count("/") > 1:
        raise TrimixError(
            f"{spec.name}: the folder {spec.path} does not exist.",
            "correct the path; a model on the Hub is named owner/name",
        )
    repository = _repository(spec)
    where = (repository, name, spec.revision, spec.subfolder)
    try:
        return hub.fetch(*where, cached=not known.reachable)
    except hub.ERRORS as error:
        hub.explain(error, repository, name, known.cause)


def _commit(path: Path) -> str:
    """The commit in a path of the cache: .../snapshots/<commit>/[subfolder/]config.json."""
    parts = path.parts
    return parts[len(parts) - parts[::-1].index("snapshots")]


def _listing(folder: Path) -> dict[str, int | None]:
    """Bytes per file of a folder; a link to nowhere (an interrupted download) is left out."""
    return {p.name: p.stat().st_size for p in folder.iterdir() if p.is_file()}


def _no_model(spec: SourceSpec, main: str) -> TrimixError:
    """The error for a place that holds something else than a transformers model."""
    inside = f" (subfolder {spec.subfolder})" if spec.subfolder else ""
    if Path(spec.path, "cpt", "run.json").is_file():  # what `trimix cpt` makes its model from
        return TrimixError(
            f"{label(spec)} has no {main}: its training has not finished.",
            "go on with `trimix cpt` and the file that it was begun with: it ends with the model",
        )
    return TrimixError(
        f"{label(spec)}{inside} has no {main}: it is not a transformers model.",
        "correct the path, or name its subfolder= or gguf_file=; merge an adapter into its base "
        "model first",
    )
