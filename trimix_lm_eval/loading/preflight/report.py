"""`check`: everything that can be known about a run before its weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from transformers import AutoTokenizer

from trimix_lm_eval.loading.preflight import memory, vocabulary
from trimix_lm_eval.loading.preflight.access import Files, label, locate, locate_tokenizer
from trimix_lm_eval.loading.preflight.configs import load_config
from trimix_lm_eval.loading.preflight.vocabulary import Vocabulary
from trimix_lm_eval.loading.settings import Settings, SourceSpec
from trimix_lm_eval.utils.errors import TrimixError, first_line, quoted, together, warn_once

T = TypeVar("T")

#: Context length of a model that does not tell, as in lm-eval.
_DEFAULT_LENGTH = 2048
#: Above this, a tokenizer's model_max_length stands for "not set".
_NO_LENGTH = 10**15


@dataclass(frozen=True)
class PreflightReport:
    """What `check` found.

    Attributes:
        configs: The transformers config of each source.
        commits: The commit of each source's revision; None for a local folder.
        contexts: Context length of each source, in tokens.
        devices: Where each source goes: a device, or ``auto`` for all GPUs.
        estimates: Memory of each source.
        free: Free bytes on the devices in use.
        max_length: Context length of the run: as set, else the smallest of the sources'.
        vocab_size: How many leading token ids are fused; never a padding row.
        unused_ids: Ids below `vocab_size` that stand for no token.
        tokenizer: The tokenizer in use.
    """

    configs: dict[str, Any]
    commits: dict[str, str | None]
    contexts: dict[str, int]
    devices: dict[str, str]
    estimates: tuple[memory.Estimate, ...]
    free: dict[str, int | None]
    max_length: int
    vocab_size: int
    unused_ids: tuple[int, ...]
    tokenizer: Any

    def lines(self) -> list[str]:
        """The report for reading."""
        lines = memory.table(self.estimates, self.free)
        for name, commit in self.commits.items():
            lines.append(f"{name}: {f'commit {commit}' if commit else 'a local folder'}")
        contexts = ", ".join(f"{name} {n:,}" for name, n in self.contexts.items())
        lines.append(f"context: {self.max_length:,} tokens ({contexts})")
        holes = f", {len(self.unused_ids)} of them unused" if self.unused_ids else ""
        lines.append(f"vocabulary: {self.vocab_size:,} token ids are fused{holes}")
        return lines


def check(
    settings: Settings,
    needed: Iterable[str],
    device: str | None = None,
    kept: Container[SourceSpec] = (),
) -> PreflightReport:
    """Check a run before any weight is loaded.

    Args:
        settings: What the run was asked for.
        needed: Roles of the sources that will be loaded. The tokenizer is large_ins's (or
            ``settings.tokenizer``) even if large_ins itself is not among them.
        device: Where sources go that name no device; None is the first GPU, or the CPU.
        kept: Models that are in memory already (see `pinned`): they need no room any more.

    Raises:
        TrimixError: Something would fail later, or silently give wrong numbers.
    """
    specs = [settings.sources[name] for name in needed]
    present = memory.devices()
    devices = {spec.name: memory.place(spec, present, device) for spec in specs}
    files = _each(specs, locate)
    configs = _each(specs, lambda spec: load_config(spec, files[spec.name]))
    tokenizer, vocab_size, unused = _vocabulary(settings, specs, files, configs)
    contexts = _each(specs, lambda spec: context_of(configs[spec.name], tokenizer, label(spec)))
    used = present[1:] if memory.SPREAD in devices.values() else []
    free = memory.free_memory(n for n in present if n in used or n in devices.values())
    estimates = tuple(
        memory.estimate(spec, configs[spec.name], files[spec.name], devices[spec.name])
        for spec in specs
    )
    new = [spec.name for spec in specs if pinned(spec, files[spec.name].commit) not in kept]
    memory.check_fit([one for one in estimates if one.source in new], free)
    return PreflightReport(
        configs,
        {name: found.commit for name, found in files.items()},
        contexts,
        devices,
        estimates,
        free,
        _max_length(settings, contexts, configs),
        vocab_size,
        unused,
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


def pinned(spec: SourceSpec, commit: str | None) -> SourceSpec:
    """A source at the commit that was checked, whatever a branch does meanwhile."""
    return replace(spec, revision=commit or spec.revision)


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
) -> tuple[Any, int, tuple[int, ...]]:
    """Compare all tokenizers; return the one in use, the fused size and ids without a token."""
    main = large = settings.sources["large_ins"]
    if settings.tokenizer is None:
        found = files.get("large_ins") or locate(large)
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
    reference, chosen = Vocabulary.of(tokenizer, label(main)), main is not large
    others = []
    for spec in specs:
        if spec is main:
            continue
        if not (spec.gguf_file or files[spec.name].has_tokenizer):
            warn_once(
                f"{label(spec)} comes without a tokenizer; it is taken to have that of "
                f"{reference.label}."
            )
            continue
        own = load_tokenizer(spec, files[spec.name])
        others.append(Vocabulary.of(own, label(spec)))
        vocabulary.compare(reference, others[-1], chosen)
        vocabulary.compare_encodings((reference.label, tokenizer), (label(spec), own), chosen)
    rows = {label(spec): _rows(spec, configs[spec.name]) for spec in specs}
    size = vocabulary.fused_size(reference, others, rows, tokenizer.eos_token_id)
    return tokenizer, size, tuple(sorted(set(range(size)) - set(reference.tokens.values())))


def _rows(spec: SourceSpec, config: Any) -> int:
    """Rows of a source's embedding."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int) or rows < 1:
        raise TrimixError(
            f"{label(spec)}: its config names no vocab_size.", "add vocab_size to its config.json"
        )
    return rows


def context_of(config: Any, tokenizer: Any, label: str = "the model") -> int:
    """Context length of a source with the tokenizer in use, found as lm-eval finds it.

    Raises:
        TrimixError: What is given as one is no number of tokens.
    """
    text = config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(text, name, None) is not None:
            return min(_tokens(f"{label}: {name}", getattr(text, name)), _fixed_rope(text))
    length = tokenizer.model_max_length
    if isinstance(length, int | float) and length >= _NO_LENGTH:
        return _DEFAULT_LENGTH
    return _tokens(f"{label}: model_max_length", length)


def _tokens(name: str, value: Any) -> int:
    """A context length of a model's own files."""
    # Not `in range(…)`, which looks for a fraction among all numbers, one after the other.
    if isinstance(value, int | float) and 2 <= value < _NO_LENGTH and value == int(value):
        return int(value)
    raise TrimixError(
        f"{name}={quoted(value)} is no number of tokens.",
        "write the context length there, in the model's config.json or tokenizer_config.json",
    )


def _fixed_rope(text: Any) -> int:
    """Tokens up to which rotary embeddings do not depend on what else is in the batch.

    The kinds ``dynamic`` and ``longrope`` turn *all* positions differently once the longest row of
    a batch exceeds the original context, so one row's numbers would depend on its neighbours.
    """
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    lengths = []
    for kind in kinds:
        if kind.get("rope_type", kind.get("type")) in ("dynamic", "longrope"):
            original = kind.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            lengths.append(int(original or text.max_position_embeddings))
    return min(lengths, default=_NO_LENGTH)


def _max_length(settings: Settings, contexts: dict[str, int], configs: dict[str, Any]) -> int:
    """Context length of the run."""
    name, smallest = min(contexts.items(), key=lambda item: item[1])
    for role, config in configs.items():
        fixed = _fixed_rope(config.get_text_config())
        if settings.max_length is not None and settings.max_length > fixed:
            raise TrimixError(
                f"max_length={settings.max_length} is more than the {fixed} tokens up to which "
                f"{role}'s rotary embedding is the same for every row of a batch; beyond, the "
                "numbers of one request would depend on its neighbours.",
                f"leave max_length out, or give at most {fixed}",
            )
    if settings.max_length is None:
        return smallest
    if int(settings.max_length) > smallest:
        warn_once(
            f"max_length={settings.max_length} is more than {name} was made for ({smallest} "
            "tokens); positions beyond that are untrained, or an error."
        )
    return int(settings.max_length)
