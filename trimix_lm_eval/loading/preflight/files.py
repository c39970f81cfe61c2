"""Whether the files of a local folder are whole: regular, readable, not cut off.

Some of what is looked for transformers would pass over in silence: of a ``generation_config.json``
that is no JSON it forgets the tokens that end a text, and the numbers are others. What it does not
read is not looked at. Of weights only the header is read, which takes no time.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from trimix_lm_eval.utils.errors import TrimixError, first_line, quoted

_JSON = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
)
_OTHERS = ("tokenizer.json", "tokenizer.model", "chat_template.jinja")
#: Of these transformers loads the first that is there.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: Numbers that are weights as they are, as safetensors call them.
_FLOATS = ("F64", "F32", "F16", "BF16")
_AGAIN = "copy or download the file again"
#: What git leaves in place of a large file that it has not fetched.
_POINTER = b"version https://git-lfs"


def read_json(label: str, path: Path) -> dict[str, Any]:
    """Read a file of a model that is a mapping in JSON."""
    _check_regular(label, path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrimixError(
            f"{label}: {path} is not readable JSON: {first_line(error)}", _AGAIN
        ) from error
    if not isinstance(content, dict):
        raise TrimixError(f"{label}: {path} is JSON, but not a mapping.", _AGAIN)
    return content


def check_folder(label: str, folder: Path, weights: str | None = None) -> None:
    """Check the files of a local folder that are read when the model is loaded.

    Args:
        label: How messages name the model.
        folder: Where its files are.
        weights: The file of its weights, if one was asked for by its name.

    Raises:
        TrimixError: One is damaged, or lacks; the message names it.
    """
    for name in _JSON:
        if os.path.lexists(folder / name):
            read_json(label, folder / name)
    for name in _OTHERS:
        if os.path.lexists(folder / name):
            _check_regular(label, folder / name)
    used = weights or next((name for name in _WEIGHTS if os.path.lexists(folder / name)), None)
    if used is not None:
        parts = _parts(label, folder / used) if used.endswith(".index.json") else (used,)
        for name in parts:
            _check_weights(label, folder / name)


class StoredTensor(NamedTuple):
    """A tensor of a file.

    Attributes:
        file: The file's name.
        shape: Its shape.
        nbytes: How many bytes it takes.
        dtype: What its numbers are, as safetensors call it, e.g. ``BF16``.
    """

    file: str
    shape: list[int]
    nbytes: int
    dtype: str


def tensors_of(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a local folder's safetensors, by name.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is damaged.
    """
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, one in header.items():
            if name != "__metadata__":
                start, end = one["data_offsets"]
                found[name] = StoredTensor(path.name, one["shape"], end - start, one["dtype"])
    return found


def quantized_tensor(folder: Path) -> str:
    """A weight of a folder that is stored as integers or in 8 bits, in words; empty if none is.

    Such numbers are no weights by themselves: they have scales, which a model knows how to apply
    by the ``quantization_config`` of its config.json.
    """
    try:
        tensors = tensors_of(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ""
    for name, one in tensors.items():
        if name.endswith(".weight") and one.dtype not in _FLOATS:
            return f"{name} in {folder / one.file} is stored as {one.dtype}"
    return ""


def odd_tensor(folder: Path) -> str:
    """Which of a folder's tensors that are numbered alike, as experts are, lacks or differs.

    It is said in words, and is empty if there is none, or if the files do not tell.
    """
    groups: dict[str, dict[str, dict[str, StoredTensor]]] = {}
    try:
        tensors = tensors_of(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ""
    for name, one in tensors.items():
        if numbered := re.fullmatch(r"(.*\.\d+\..*\.)(\d+)(\..*)", name):
            before, number, after = numbered.groups()
            groups.setdefault(before, {}).setdefault(after, {})[number] = one
    for before, alike in groups.items():
        numbers = sorted(set().union(*alike.values()), key=int)
        for after, have in alike.items():
            places = Counter((one.file, tuple(one.shape)) for one in have.values())
            file, shape = places.most_common(1)[0][0]
            for number in numbers:
                name = f"{before}{number}{after}"
                if number not in have:
                    return f"there is no {name} in {folder / file}"
                one = have[number]
                if tuple(one.shape) != shape:
                    where = folder / one.file
                    return f"{name} in {where} is {one.shape}, the others {list(shape)}"
    return ""


def _parts(label: str, index: Path) -> Iterable[str]:
    """The files of weights that an index names, all of which are there."""
    names = read_json(label, index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise TrimixError(f"{label}: {index} has no weight_map from tensors to files.", _AGAIN)
    parts = sorted(set(names.values()))
    missing = [name for name in parts if not os.path.isfile(index.parent / name)]
    if missing or not parts:
        raise TrimixError(
            f"{label} lacks {len(missing)} of {len(parts)} files of weights, first "
            f"{quoted(missing[0])}."
            if missing
            else f"{label}: {index} names no files of weights.",
            "finish copying or downloading the folder",
        )
    return parts


def _check_weights(label: str, path: Path) -> None:
    """Check that a file of weights is no stump, as far as its beginning and its length tell."""
    _check_regular(label, path)
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER:
        raise TrimixError(
            f"{label}: {path} is a pointer of git-lfs, not the file itself.",
            "run `git lfs pull` in its folder, or download the model with `hf download`",
        )
    if not start:
        raise TrimixError(f"{label}: {path} is empty.", _AGAIN)
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise TrimixError(
            f"{label}: {path} is damaged or cut off: {first_line(error)}", _AGAIN
        ) from error


def _check_regular(label: str, path: Path) -> None:
    """Check that a file is one, and may be read: reading a pipe or a device might never end."""
    try:
        if path.is_file():
            with path.open("rb"):
                return
        reason = "it is a folder, a pipe, a device, or a link to nowhere"
    except OSError as error:
        reason = error.strerror or str(error)
    raise TrimixError(f"{label}: {path} is no file that can be read: {reason}.", _AGAIN)
