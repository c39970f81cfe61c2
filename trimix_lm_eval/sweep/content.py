"""What a task's results depend on, by content: documents, exemplars, and the code that reads them.

A task names data files and functions, and both may change under an unchanged name. Documents are
digested as the task gives them, wherever they come from and whatever has been made of them; code by
the files of its functions and of what these import from beside them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from trimix_lm_eval.utils import code_files
from trimix_lm_eval.utils.errors import TrimixError

#: A name for a thing of no content is its place in memory, which is another each time.
_PLACE = re.compile(r" at 0x[0-9a-f]+")


def digest_of(documents: Iterable[Any]) -> str:
    """Identity of documents in their order."""
    total = hashlib.sha256()
    for document in documents:
        total.update(_as_text(document).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()[:16]


def evaluated(
    documents: Sequence[Any], limit: float | None, samples: Sequence[int] | None, name: str
) -> list[Any]:
    """Those of a task's documents that a run asks for by ``limit`` or ``samples``.

    Raises:
        TrimixError: `samples` names a document that the task does not have.
    """
    if samples:
        if max(samples) >= len(documents):
            raise TrimixError(
                f"samples asks for document {max(samples)} of {name}, which has {len(documents)}.",
                "documents are counted from 0",
            )
        wanted = set(samples)
        return [document for i, document in enumerate(documents) if i in wanted]
    if limit is None:
        return list(documents)
    return list(islice(documents, math.ceil(len(documents) * limit) if limit < 1 else int(limit)))


def exemplars(task: Any, num_fewshot: int | None) -> list[Any]:
    """The documents that exemplars are drawn from; none where there are no exemplars."""
    own = task.get_config("num_fewshot")
    # A task that says 0 keeps it, whatever a run asks for.
    if not own if num_fewshot is None or own == 0 else not num_fewshot:
        return []
    return list(getattr(getattr(task, "sampler", None), "df", None) or task.fewshot_docs() or [])


def code(task: Any) -> dict[str, str]:
    """By name, the digest of each file that a task's functions are in or import from beside them.

    Of this package, the functions themselves are in the task's definition; files of installed
    packages that its functions import are left out.
    """
    own = [] if type(task).__module__ == "lm_eval.api.task" else [type(task)]
    return code_files.digests(_callables([task.config, *own]))


def _as_text(document: Any) -> str:
    try:
        return json.dumps(document, default=_plain)
    except (TypeError, ValueError):  # keys that are no texts, or what contains itself
        return _PLACE.sub("", repr(document))


def _plain(value: Any) -> str:
    """What JSON has no word for: pictures, sounds, numbers of other libraries."""
    data = value if isinstance(value, bytes) else getattr(value, "tobytes", bytes)()
    return hashlib.sha256(data).hexdigest() if data else _PLACE.sub("", repr(value))


def _callables(value: Any) -> Iterator[Any]:
    if callable(value):
        yield value
        if isinstance(value, functools.partial):
            yield from _callables([value.func, value.args, value.keywords])
    elif dataclasses.is_dataclass(value):  # lm-eval's is a mapping, too, but an empty one
        yield from _callables([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, Mapping):
        yield from _callables(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _callables(one)
