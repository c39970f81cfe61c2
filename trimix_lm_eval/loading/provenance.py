"""What a number was made from (invariant 6): sources, revisions, policy, weights, tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.policies import Policy, ours
from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.loading.settings import Settings
from trimix_lm_eval.utils import code_files
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.io import sha256
from trimix_lm_eval.utils.paths import named

#: Files of a model's folder that answers depend on: weights, tokenizer, config, code of its own.
_KINDS = {".json", ".safetensors", ".bin", ".gguf", ".model", ".txt", ".jinja", ".py"}
#: So many files are read side by side: less time than loading takes.
_READERS = 8
#: A tokenizer that shows no definition is known by what it makes of this.
_PROBE = "The hen's 12 eggs,\n\tབོད་སྐད། Übung 3.5% 你好 <|x|> naïve  e\u0301"


def needed(asked: Settings, configs: Sequence[FusionConfig]) -> tuple[str, ...]:
    """The sources that some fusion config needs, in the order of `SOURCES`.

    Raises:
        TrimixError: One is not given, or a mask looks at a source that has no weight.
    """
    used = {name for config in configs for name in config.policy.sources(asked.sources)}
    names = tuple(name for name in SOURCES if name in used)
    for config in configs:
        if config.mask is not None and config.plausibility_source not in names:
            raise TrimixError(
                f"plausibility_source={config.plausibility_source} has weight 0 and is not loaded.",
                f"name one of: {', '.join(names)}",
            )
    return names


def describe(
    asked: Settings,
    config: FusionConfig,
    commits: Mapping[str, str | None],
    dtypes: Mapping[str, str],
    max_length: int,
    tokenizer: Any,
    puts_bos: bool = False,
) -> dict[str, Any]:
    """What a run's numbers depend on, as JSON values.

    Args:
        asked: What was asked for.
        config: The fusion; of the sources, only those that it needs are told of.
        commits: Of each source on the Hub, by role.
        dtypes: Of each source's weights, by role.
        max_length: Context length in tokens.
        tokenizer: The common tokenizer.
        puts_bos: Whether it puts a BOS before a text by itself: rolling log-likelihoods are then
            other than those of lm-eval's ``hf``, which scores that BOS.

    Returns:
        ``sources`` (path, of the shipped trio ``demo/<role>``, revision, commit or digest of the
        local files, dtype, quantization, by role), ``policy`` (see `Policy.record`),
        ``policy_code`` where it is not one of this package's, ``plausibility``, and the context's
        settings.
    """
    sources = {}
    for name in needed(asked, [config]):
        spec = asked.sources[name]
        sources[name] = {
            "path": named(spec.path),
            "revision": spec.revision,
            "subfolder": spec.subfolder,
            "gguf_file": spec.gguf_file,
            **model_identity(spec.path, spec.subfolder, commits.get(name)),
            "dtype": dtypes[name],
            "quantization": spec.quantization,
        }
    masked = config.mask is not None
    bos = {"leading_bos": "not scored, unlike in hf"} if puts_bos else {}
    return {
        "sources": sources,
        "policy": config.policy.record(),
        **policy_code(config.policy),
        "plausibility": config.mask,
        "plausibility_source": config.plausibility_source if masked else None,
        "max_length": max_length,
        "tokenizer": vocabulary_digest(tokenizer),
        "add_bos_token": asked.add_bos_token,
        "prefix_token_id": asked.prefix_token_id,
        "enable_thinking": asked.enable_thinking,
        "think_end_token": asked.think_end_token,
        "seed": asked.seed,
        **bos,
    }


def vocabulary_digest(tokenizer: Any) -> str:
    """Identity of a tokenizer: its tokens and their ids, and how it cuts texts into them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        cutting: Any = tokenizer.encode(_PROBE, add_special_tokens=False)
    else:  # truncation and padding, which change with every call, are left out
        names = ("normalizer", "pre_tokenizer", "model", "post_processor")
        parts = [getattr(backend, name) for name in names]
        cutting = [None if part is None else part.__getstate__().decode() for part in parts]
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    added = [repr(one) for one in sorted(getattr(tokenizer, "added_tokens_decoder", {}).items())]
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return text_digest(json.dumps([pairs, added, ends, cutting]))


def policy_code(policy: Policy) -> dict[str, dict[str, str]]:
    """The code of a policy of somebody's, which may change under its name; none of our own."""
    cls = type(policy)
    return {} if ours(policy.name) is cls else {"policy_code": code_files.digests([cls])}


def model_identity(path: str, subfolder: str, commit: str | None) -> dict[str, str | None]:
    """Which files a model consists of, wherever they lie: ``commit``, or a folder's ``digest``."""
    folder = Path(path)
    return {"commit": commit, "digest": digest(folder / subfolder) if folder.is_dir() else None}


def digest(folder: Path) -> str:
    """Identity of a local model: names and contents of its files, every byte of them."""
    files = sorted(f for f in folder.iterdir() if f.suffix in _KINDS and f.is_file())
    with ThreadPoolExecutor(_READERS) as pool:
        contents = list(pool.map(_content, files))
    total = hashlib.sha256()
    for file, content in zip(files, contents, strict=True):
        total.update(f"{file.name}\0{content}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:16]


def _content(file: Path) -> str:
    """The SHA-256 of a file; one that has not been written since is not read again."""
    s = file.stat()
    return _content_at(file, (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))


@lru_cache(maxsize=4096)
def _content_at(file: Path, _: tuple[int, ...]) -> str:
    return sha256(file)


def text_digest(text: str) -> str:
    """A short identity of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


#: Where files are and how a policy is shown: no number depends on them.
_NO_MATTER = re.compile(r"sources\.\w+\.path|policy\.(label|honesty|cost|differing)")
#: What earlier versions recorded of an option that is gone, where it stood for today's only way.
_ONLY_WAY = {"optimum": "grid"}

#: Characters of a value that a difference shows in full.
_LONGEST = 100


def compared(a: Any, b: Any, at: str = "") -> Iterator[str]:
    """Name what two descriptions differ in, as far as numbers depend on it.

    What is said of the whole comes before what is said of a part, such as a source.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(k for k in b if k not in a)]
        for key in sorted(keys, key=lambda k: isinstance(a.get(k, b.get(k)), dict)):
            mine, theirs = (
                None if d.get(key) == _ONLY_WAY.get(key) else d.get(key) for d in (a, b)
            )
            where = f"{at}.{key}" if at else str(key)
            if not _NO_MATTER.fullmatch(where):
                yield from compared(mine, theirs, where)
    elif a != b:
        mine, theirs = _shown(a), _shown(b)
        if mine == theirs:  # what was left out is what they differ in
            mine, theirs = str(a), str(b)
        yield f"{at} ({mine} against {theirs})"


def _shown(value: Any) -> str:
    """A value in a line that names others too: of a grid or a source, its beginning and end."""
    written = str(value)
    return written if len(written) <= _LONGEST else f"{written[:60]} … {written[-20:]}"
