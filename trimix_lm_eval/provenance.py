"""What a number was made from (invariant 6), and a guard for lm-eval's response cache.

lm-eval keys ``--use_cache`` on the request alone, so two weightings that share a file would return
each other's scores in silence. `Guard` writes a fingerprint into the file and refuses another's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.errors import TrimixError
from trimix_lm_eval.trimix import TriMix, needed
from trimix_lm_eval.weights import Weights

#: How much of a large file is read, in so many pieces all over it: enough to tell two checkpoints
#: apart within a second.
_PIECE_BYTES, _PIECES = 2**18, 32

_FINGERPRINT = "trimix:fingerprint"
_TASK_POINT = "trimix:task-point:"
_CHOSEN = "trimix:chosen:"


def describe(model: TriMix, which: int = 0) -> dict[str, Any]:
    """What a run's numbers depend on, as JSON values.

    Args:
        model: What runs.
        which: Index of the recipe; of the sources, only those that it needs are told of.

    Returns:
        ``sources`` (path, revision, commit or digest of the local files, dtype, quantization, by
        role), ``policy`` with its options, ``plausibility``, and the context's settings.
    """
    asked, recipe = model.settings, model.fuser.recipes[which]
    by_name = {source.name: source for source in model.fuser.ensemble.sources}
    sources = {}
    for name in needed(asked, [recipe]):
        source = by_name[name]
        spec = asked.sources[source.name]
        folder = Path(spec.path)
        sources[source.name] = {
            "path": spec.path,
            "revision": spec.revision,
            "subfolder": spec.subfolder,
            "gguf_file": spec.gguf_file,
            "commit": model.report.commits.get(source.name),
            "digest": digest(folder / spec.subfolder) if folder.is_dir() else None,
            "dtype": str(source.dtype).removeprefix("torch."),
            "quantization": spec.quantization,
        }
    policy, masked = recipe.policy, recipe.plausibility is not None
    options = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    if "grid" in options:
        options["grid"] = [list(point) for point in options["grid"]]
    return {
        "sources": sources,
        "policy": {"name": policy.name, **options},
        "plausibility": recipe.plausibility,
        "plausibility_source": recipe.plausibility_source if masked else None,
        "max_length": model.max_length,
        "tokenizer": vocabulary_digest(model.tokenizer),
        "add_bos_token": asked.add_bos_token,
        "prefix_token_id": asked.prefix_token_id,
        "enable_thinking": asked.enable_thinking,
        "think_end_token": asked.think_end_token,
        "seed": asked.seed,
    }


def vocabulary_digest(tokenizer: Any) -> str:
    """Identity of a tokenizer: its tokens and their ids."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


def digest(folder: Path) -> str:
    """Identity of a local model: names, sizes and samples of its files.

    Args:
        folder: Of a config, a tokenizer and weights.
    """
    total = hashlib.sha256()
    kinds = {".json", ".safetensors", ".bin", ".gguf", ".model"}
    for file in sorted(f for f in folder.iterdir() if f.suffix in kinds):
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _PIECES * _PIECE_BYTES:
                total.update(stream.read())
                continue
            for piece in range(_PIECES):
                stream.seek(piece * (size - _PIECE_BYTES) // (_PIECES - 1))
                total.update(stream.read(_PIECE_BYTES))
    return total.hexdigest()[:16]


class TaskPoint(NamedTuple):
    """The point of a task and what it was chosen from.

    Attributes:
        weights: The point.
        drawn: Of each prompt that was read: its place in the draw, and a digest of its text.
    """

    weights: Weights
    drawn: dict[int, str]

    def fits(self, place: int, text: str, most: int) -> bool:
        """Whether a prompt that arrives now is of the set that the point was chosen from.

        Args:
            place: Its place in the draw; the lowest ``most`` were read.
            text: The prompt.
            most: How many prompts are read at most.
        """
        if place in self.drawn:
            return self.drawn[place] == text_digest(text)
        return len(self.drawn) >= most and place > max(self.drawn)


def text_digest(text: str) -> str:
    """A short identity of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Guard:
    """Our own entries in lm-eval's response cache.

    Args:
        store: The cache file, opened by lm-eval; None without ``--use_cache``.
    """

    def __init__(self, store: MutableMapping[str, Any] | None = None) -> None:
        self.store: MutableMapping[str, Any] = {} if store is None else store

    def claim(self, description: dict[str, Any]) -> None:
        """Make the file ours, or make sure that it was.

        Args:
            description: See `describe`; paths do not count, digests and commits do.

        Raises:
            TrimixError: It holds the answers of another model, or of this one weighted otherwise.
        """
        mine = json.loads(json.dumps(description))
        theirs = self.store.get(_FINGERPRINT)
        where = getattr(self.store, "filename", "the cache file")
        mend = "give this run a --use_cache path of its own, or delete that file"
        if theirs is None:
            if len(self.store):
                raise TrimixError(f"{where} holds the answers of a model other than trimix.", mend)
            self.store[_FINGERPRINT] = mine
            return
        differences = list(compared(theirs, mine))
        if differences:
            shown = "; ".join(differences[:5])
            raise TrimixError(
                f"{where} holds the answers of another run: {_short(theirs)}. This run is "
                f"{_short(mine)}. They differ in {shown}.",
                mend,
            )

    @property
    def is_file(self) -> bool:
        """Whether there is a cache file, with answers that outlive this process."""
        return not isinstance(self.store, dict)

    def task_points(self) -> dict[str, TaskPoint]:
        """The stored points of ``ppl_task``, by task."""
        found = self._under(_TASK_POINT)
        return {t: TaskPoint(Weights(*point), dict(drawn)) for t, (point, drawn) in found.items()}

    def keep_task_point(self, task: str, chosen: TaskPoint) -> None:
        """Store a task's point before any request is scored with it."""
        self.store[_TASK_POINT + task] = (tuple(chosen.weights), chosen.drawn)

    def chosen(self) -> Iterator[tuple[str, int, str]]:
        """The labels that earlier runs of this file chose: (task, document, label)."""
        for key, label in self._under(_CHOSEN).items():
            task, _, doc = key.rpartition(":")
            yield task, int(doc), label

    def keep_chosen(self, task: str, doc: int, label: str) -> None:
        """Store the label chosen for a document."""
        self.store[f"{_CHOSEN}{task}:{doc}"] = label

    def _under(self, prefix: str) -> dict[str, Any]:
        keys = [key for key in self.store if key.startswith(prefix)]
        return {key.removeprefix(prefix): self.store[key] for key in keys}


def compared(a: Any, b: Any, at: str = "") -> Iterator[str]:
    """Name what two descriptions differ in."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if key != "path":
                yield from compared(a.get(key), b.get(key), f"{at}.{key}" if at else key)
    elif a != b:
        yield f"{at} ({a} against {b})"


def _short(description: dict[str, Any]) -> str:
    """One line that tells a user which run this was."""
    policy = description["policy"]
    options = {k: v for k, v in policy.items() if k in ("alpha", "beta", "gamma", "optimum")}
    sources = ", ".join(
        f"{role}={s['path']}@{s['commit'] or s['digest'] or s['revision']} ({s['dtype']})"
        for role, s in description["sources"].items()
    )
    extra = "".join(f", {k}={v}" for k, v in options.items() if v is not None)
    return f"policy={policy['name']}{extra} of {sources}"
