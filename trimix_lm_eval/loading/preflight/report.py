"""`check`: everything that can be known about a run before its weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoTokenizer

from trimix_lm_eval.loading.preflight import memory
from trimix_lm_eval.loading.preflight.access import Files, label, locate, locate_tokenizer
from trimix_lm_eval.loading.preflight.configs import load_config
from trimix_lm_eval.loading.preflight.context import Contexts, contexts_of
from trimix_lm_eval.loading.preflight.relation import (
    Relation,
    fused_size,
    relate,
    settle,
    trusted,
)
from trimix_lm_eval.loading.preflight.vocabulary import Side, Vocabulary
from trimix_lm_eval.loading.settings import Settings, SourceSpec
from trimix_lm_eval.utils.errors import TrimixError, first_line, together, warn_once

T = TypeVar("T")


@dataclass(frozen=True)
class PreflightReport:
    """What `check` found.

    Attributes:
        configs: The transformers config of each source.
        commits: The commit of each source's revision; None for a local folder.
        contexts: Context length of each source, in tokens, and of the run.
        devices: Where each source goes: a device, or ``auto`` for all GPUs.
        estimates: Memory of each source.
        free: Free bytes on the devices in use.
        vocab_size: How many leading token ids are fused; never a padding row.
        unused_ids: Ids below `vocab_size` that stand for no token.
        relations: How the vocabulary of each source is related to that in use.
        tokenizer: The tokenizer in use.
        each: Of ``fusion=sequence``, what was found of each source by itself, with its own
            tokenizer and its own context length; else empty.
    """

    configs: dict[str, Any]
    commits: dict[str, str | None]
    contexts: Contexts
    devices: dict[str, str]
    estimates: tuple[memory.Estimate, ...]
    free: dict[str, int | None]
    vocab_size: int
    unused_ids: tuple[int, ...]
    relations: dict[str, Relation]
    tokenizer: Any
    each: dict[str, PreflightReport] = field(default_factory=dict)

    @property
    def max_length(self) -> int:
        """Context length of the run: as set, else the smallest of the sources'."""
        return self.contexts.run

    @property
    def common_length(self) -> int | None:
        """The context length that all sources have; None where each keeps its own."""
        return None if self.each else self.max_length

    def lines(self) -> list[str]:
        """The report for reading."""
        lines = memory.table(self.estimates, self.free)
        for name, commit in self.commits.items():
            lines.append(f"{name}: {f'commit {commit}' if commit else 'a local folder'}")
        if self.each:
            return lines + [
                f"{name}: a context of {one.max_length:,} tokens, and {one.vocab_size:,} token ids "
                "of its own"
                for name, one in self.each.items()
            ]
        lines.append(self.contexts.line())
        holes = f", {len(self.unused_ids)} of them unused" if self.unused_ids else ""
        lines.append(f"vocabulary: {self.vocab_size:,} token ids are fused{holes}")
        lines += [f"{name}: {one.told}; {one.fusions}" for name, one in self.relations.items()]
        return lines


def check(
    settings: Settings,
    needed: Iterable[str],
    device: str | None = None,
    kept: Container[SourceSpec] = (),
) -> PreflightReport:
    """Check sources that are fused at every token; arguments and errors are those of `each.check`.

    The tokenizer is large_ins's (or ``settings.tokenizer``), whether it is among them or not.
    """
    specs = [settings.sources[name] for name in needed]
    present = memory.devices()
    devices = {spec.name: memory.place(spec, present, device) for spec in specs}
    files = _each(specs, locate)
    configs = _each(specs, lambda spec: load_config(spec, files[spec.name]))
    tokenizer, vocab_size, unused, relations = _vocabulary(settings, specs, files, configs)
    contexts = contexts_of(settings.max_length, specs, configs, tokenizer)
    used = present[1:] if memory.SPREAD in devices.values() else []
    free = memory.free_memory(n for n in present if n in used or n in devices.values())
    estimates = tuple(
        memory.estimate(spec, configs[spec.name], files[spec.name], devices[spec.name])
        for spec in specs
    )
    new = [
        spec.name
        for spec in specs
        if pinned(spec, files[spec.name].commit, spec.name in contexts.long) not in kept
    ]
    memory.check_fit([one for one in estimates if one.source in new], free)
    return PreflightReport(
        configs,
        {name: found.commit for name, found in files.items()},
        contexts,
        devices,
        estimates,
        free,
        vocab_size,
        unused,
        relations,
        tokenizer,
    )


def _each(specs: Sequence[SourceSpec], look: Callable[[SourceSpec], T]) -> dict[str, T]:
    """Look at all sources, in threads: a Hub that is silent is waited for once."""
    found, refused = {}, []
    with ThreadPoolExecutor(max(1, len(specs))) as pool:
        for spec, future in [(spec, pool.submit(look, spec)) for spec in specs]:
            try:
                found[spec.name] = future.result()
            except TrimixError as error:
                refused.append(error)
    if refused:
        raise together(refused)
    return found


@dataclass(frozen=True)
class PinnedSpec(SourceSpec):
    """A source as it is loaded.

    Attributes:
        long_rope: Whether its rotary embedding takes the factors for long texts; see `Contexts`.
    """

    long_rope: bool = False


def pinned(spec: SourceSpec, commit: str | None, long_rope: bool) -> PinnedSpec:
    """A source at the commit that was checked, whatever a branch does meanwhile."""
    same = {field.name: getattr(spec, field.name) for field in fields(SourceSpec)}
    return PinnedSpec(**same | {"revision": commit or spec.revision}, long_rope=long_rope)


def load_tokenizer(spec: SourceSpec, files: Files) -> Any:
    """Load the tokenizer that lies with a source; who changes it has to copy it before.

    Raises:
        TrimixError: There is none, or it cannot be loaded.
    """
    if not (spec.gguf_file or files.has_tokenizer):
        # Some versions of transformers make up an empty one instead of failing.
        raise TrimixError(
            f"{label(spec)} comes without a tokenizer.",
            "copy the tokenizer's files into its folder, or name another with tokenizer=",
        )
    arguments = files.arguments(spec)
    try:
        if files.commit:
            return _tokenizer_at(spec.path, tuple(sorted(arguments.items())))
        return AutoTokenizer.from_pretrained(spec.path, **arguments)
    except Exception as error:  # whatever transformers or the repository's own code raises
        raise TrimixError(
            f"{label(spec)}: its tokenizer cannot be loaded: {type(error).__name__}: "
            f"{first_line(error)}",
            "install the library it names, check that tokenizer.json is complete, or name "
            "another tokenizer with tokenizer=",
        ) from error


@lru_cache(maxsize=8)
def _tokenizer_at(path: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """The tokenizer of a commit, which stays as it is: runs that are checked in turn share it."""
    return AutoTokenizer.from_pretrained(path, **dict(arguments))


def _vocabulary(
    settings: Settings,
    specs: list[SourceSpec],
    files: dict[str, Files],
    configs: dict[str, Any],
) -> tuple[Any, int, tuple[int, ...], dict[str, Relation]]:
    """Compare all tokenizers with that in use.

    Returns:
        The tokenizer in use, the fused size, the ids below it without a token, and the relation of
        each source.
    """
    main = large = settings.sources.get("large_ins", specs[0])
    if settings.tokenizer is None:
        found = files.get(large.name) or locate(large)
    else:
        # Its own repository: the revision and subfolder of large_ins say nothing about it.
        main = SourceSpec(
            "tokenizer", settings.tokenizer, trust_remote_code=large.trust_remote_code
        )
        found = locate_tokenizer(main)
    tokenizer = load_tokenizer(main, found)
    if tokenizer.eos_token_id is None:
        raise TrimixError(
            f"{label(main)}: its tokenizer has no token that ends a text.",
            "name it as eos_token in its tokenizer_config.json, or name another tokenizer with "
            "tokenizer=",
        )
    rows = {spec.name: _rows(spec, configs[spec.name]) for spec in specs}
    reference = _side(main, tokenizer, rows)
    known = reference.vocabulary
    relations: dict[str, Relation] = {}
    for spec in specs:
        count = rows[spec.name]
        if spec is main:
            why = ""
        elif not (spec.gguf_file or files[spec.name].has_tokenizer):
            why = f"it comes without a tokenizer, and is taken to have that of {known.label}"
            warn_once(f"{label(spec)}: {why}.")
        else:
            side = _side(spec, load_tokenizer(spec, files[spec.name]), rows)
            relations[spec.name] = relate(reference, side)
            continue
        relations[spec.name] = trusted(label(spec), known, count, why)
    refused = []
    for name, relation in relations.items():
        try:
            relations[name] = settle(relation, main is not large)
        except TrimixError as error:
            refused.append(error)
    if refused:
        raise together(refused)
    size = fused_size(known, relations.values(), tokenizer.eos_token_id)
    unused = tuple(sorted(set(range(size)) - set(known.tokens.values())))
    return tokenizer, size, unused, relations


def _side(spec: SourceSpec, tokenizer: Any, rows: Mapping[str, int]) -> Side:
    """A tokenizer with the folder or repository that it comes from."""
    inside = Path(spec.path, spec.subfolder)
    path = str(inside) if inside.is_dir() else spec.path
    return Side(Vocabulary.of(tokenizer, label(spec)), tokenizer, path, rows.get(spec.name))


def _rows(spec: SourceSpec, config: Any) -> int:
    """Rows of a source's embedding."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int) or rows < 1:
        raise TrimixError(
            f"{label(spec)}: its config names no vocab_size.", "add vocab_size to its config.json"
        )
    return rows
