"""The models and the data behind a number.

A source is a repository of the Hub at a commit, or a local folder with a digest of its files. Of a
folder only the last part of its path is told: the rest is about the machine that it lay on.

What the numbers of a task are about (data set, split, language) the shipped YAML tells of our own
tasks; of others what lm-eval wrote beside the results. A task of anybody's may name its language in
its YAML, as ``metadata: {language: bo}``.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.analysis.results.scores import mapping
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.loading import run_config
from trimix_lm_eval.loading.settings import DEMO
from trimix_lm_eval.tasklib.catalog import shipped
from trimix_lm_eval.tasklib.languages import ENGLISH
from trimix_lm_eval.utils.paths import model_configs_dir, named, printable

HUB = "https://huggingface.co"
#: The family of what `model_configs/` does not know.
OTHER = "other"
#: In place of a language, of groups over more than one.
SEVERAL = "several"


class Origin(NamedTuple):
    """One source of a run: a repository of the Hub at a commit, or a folder with a digest.

    Attributes:
        name: Its id on the Hub, or the name of its folder.
        commit: Empty for a folder.
        digest: Of the folder's files; empty for a repository.
        dtype: In which it ran.
        quantization: ``int8``, ``nf4``, or empty.
    """

    name: str
    commit: str
    digest: str
    dtype: str = ""
    quantization: str = ""

    @property
    def revision(self) -> str:
        """What tells which files they were; empty if nothing does."""
        return self.commit or (f"digest:{self.digest}" if self.digest else "")

    @property
    def url(self) -> str:
        """The page of exactly these files; empty for a folder."""
        return hub_url(self.name, self.commit)


def hub_url(name: str, commit: str) -> str:
    """The page of a repository at a commit; empty if that is no Hub id at a commit."""
    is_commit = len(commit) == 40 and set(commit) <= set("0123456789abcdef")
    return f"{HUB}/{name}/tree/{commit}" if is_commit and is_hub_id(name) else ""


def is_hub_id(name: str) -> bool:
    """Whether a text is of the form ``owner/name``, by the rules of huggingface_hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def used(run: Run) -> tuple[str, ...]:
    """The roles whose logits a run's numbers depend on.

    A sweep loads models that single points of it give no weight; these do not count.
    """
    policy = policies.recorded(run.trimix["policy"])
    if policy is None:
        return tuple(role for role in SOURCES if role in run.trimix["sources"])
    return policy.sources(SOURCES)


def sources_of(run: Run) -> dict[str, Origin]:
    """The sources that a run used, by role; one that the file says nothing of has no name."""
    return {role: _origin(run, role) for role in used(run)}


def _origin(run: Run, role: str) -> Origin:
    told = run.trimix["sources"].get(role) or {}
    path, commit, digest = (str(told.get(key) or "") for key in ("path", "commit", "digest"))
    name = path if commit else local_name(path)
    for key in ("subfolder", "gguf_file"):
        name += f"/{told[key]}" if told.get(key) else ""
    dtype, quantization = (str(told.get(key) or "") for key in ("dtype", "quantization"))
    return Origin(name, commit, digest, dtype, quantization)


def local_name(path: str) -> str:
    """What to call a folder: the last part of its path; of the shipped trio ``demo/<role>``."""
    name = named(path)
    return name if name.startswith(f"{DEMO}/") else PurePath(path.replace("\\", "/")).name


def family(found: dict[str, Origin]) -> str:
    """The family of a run's models, as `model_configs/` groups them.

    The large model's id decides where it is used, else that of the first source; it must be the
    one in a config, letter for letter. A config's folder is called ``family-small+large``.
    """
    first = next((source.name for source in found.values()), "")
    return _families().get(first, OTHER)


@cache
def _families() -> dict[str, str]:
    """Family by the ids that the shipped configs name."""
    known = {}
    for path, config in run_config.shipped().items():
        arguments = config["model_args"]
        named = path.stem if path.parent == model_configs_dir() else path.parent.name
        for role in ("pretrained", "small_cpt", "small_base", "large_base"):
            if role in arguments:
                known[str(arguments[role])] = named.partition("-")[0]
    # The demo's config names the trio as a whole.
    known.update({f"demo/{role}": known["demo"] for role in SOURCES if "demo" in known})
    return known


def short(text: str) -> str:
    """A commit or digest as people quote it."""
    kind, colon, rest = text.rpartition(":")
    return f"{kind}{colon}{rest[:7]}" if text else ""


def slug(text: str) -> str:
    """A text as part of a file's name: ASCII letters, digits, dots, dashes and underscores."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)
    return "-".join(part for part in kept.split("-") if part).strip(".") or "run"


def relative(path: Path) -> str:
    """A file as messages name it: from here if it is below, else in full."""
    try:
        # Not path.resolve(), which of a circle of links is an error.
        shown = str(PurePath(os.path.realpath(path)).relative_to(os.getcwd()))
    except (OSError, ValueError):
        shown = str(path)
    return printable(shown)


class TaskData(NamedTuple):
    """The data behind a task; of a group what all of its tasks have in common.

    Attributes:
        dataset: Its id on the Hub; empty if it is not there.
        revision: The commit that was read; empty if the results do not tell.
        split: Whose documents were scored.
        exemplars: The split that exemplars come from; empty if there are none.
        language: Its code, e.g. ``bo`` or ``ben_Beng``; empty if unknown, `SEVERAL` of a group.
        shots: Exemplars in each prompt; None of a group whose tasks differ.
        version: Of the task's YAML.
    """

    dataset: str
    revision: str
    split: str
    exemplars: str
    language: str
    shots: int | None
    version: str

    @property
    def language_name(self) -> str:
        """In English; the code of a language that no task of ours is in."""
        return ENGLISH.get(self.language, self.language)


def benchmark(run: Run, task: str) -> TaskData:
    """Look up what a task or group of a run measures."""
    if task in run.groups:
        return _common(run, task)
    ours = task in shipped()
    config = run.task_config(task)
    merged = {**config, **shipped().get(task, {})}
    dataset = str(merged.get("dataset_path") or "")
    dataset = dataset if is_hub_id(dataset) else ""
    shots = run.shots(task) or 0
    data = mapping(merged, "dataset_kwargs")
    select = mapping(data, "select") if ours else {}
    told = select.get("language") or mapping(merged, "metadata").get("language")
    return TaskData(
        dataset,
        _revision(run, dataset) or str(data.get("revision") or ""),
        str(merged.get("test_split") or merged.get("validation_split") or ""),
        _exemplars(merged) if shots else "",
        str(told or ""),
        shots,
        str(mapping(run.raw, "versions").get(task, "")),
    )


def _common(run: Run, group: str) -> TaskData:
    parts = [benchmark(run, task) for task in run.leaves(group)]
    shots = {part.shots for part in parts}

    def same(name: str, otherwise: str = "") -> str:
        found = {str(getattr(part, name)) for part in parts}
        return found.pop() if len(found) == 1 else otherwise

    return TaskData(
        same("dataset"),
        same("revision"),
        same("split"),
        same("exemplars"),
        same("language", SEVERAL),
        shots.pop() if len(shots) == 1 else None,
        str(mapping(run.raw, "versions").get(group, "")),
    )


def _exemplars(config: dict[str, Any]) -> str:
    """The split that lm-eval draws exemplars from: its own rule, in its order."""
    chosen = mapping(config, "fewshot_config").get("split") or config.get("fewshot_split")
    others = (config.get(f"{name}_split") for name in ("training", "validation", "test"))
    return str(chosen or next(filter(None, others), ""))


def _revision(run: Run, dataset: str) -> str:
    """The commit of a data set: our loaders note where each file came from."""
    places = (str(file.get("from") or "") for file in run.data.values())
    commits = {
        rest.partition("/")[0]
        for repository, _, rest in (place.partition("@") for place in places)
        if dataset and repository == dataset
    }
    return commits.pop() if len(commits) == 1 else ""
