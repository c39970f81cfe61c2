"""Where text comes from: files, folders, patterns, and data sets on the Hub.

Text files and JSONL are read as bytes, line by line, by `lines`: the readers of the library
`datasets` end at the first byte that is not UTF-8, and nobody learns in which line. Parquet and
the Hub are read by that library.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.loading import hub
from trimix_lm_eval.training.cpt import values
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.training.cpt.lines import Line, of_rows, of_text, split
from trimix_lm_eval.training.cpt.values import TextPlace
from trimix_lm_eval.utils.errors import TrimixError, first_line
from trimix_lm_eval.utils.io import sha256

_ROWS = (".jsonl", ".ndjson", ".json")
_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_PACKED = (".gz", ".bz2", ".xz", ".zst")


class Source(NamedTuple):
    """One file, or one data set on the Hub.

    Attributes:
        name: For messages and reports.
        place: Where it was asked for.
        path: Of the file; None on the Hub.
        field: The column that holds the text.
        size: Bytes on disk; 0 if unknown.
        sha256: Of the file as it lies on the disk; empty on the Hub.
        commit: Of the data set; empty if unknown, and for files.
    """

    name: str
    place: TextPlace
    path: Path | None
    field: str
    size: int = 0
    sha256: str = ""
    commit: str = ""

    def lines(self) -> Iterator[Line]:
        """Yield the lines of it, or of each of its rows."""
        try:
            if self.path is None:
                yield from _of_table(_hub(self), self.field)
            elif (suffix := _suffix(self.path)) in _TABLES:
                yield from _of_table(_table(self.path, _TABLES[suffix]), self.field)
            else:
                yield from _of_file(self.path, self.field if suffix in _ROWS else None)
        except (TrimixError, MemoryError):
            raise
        except Exception as error:  # those who unpack and decode have errors of their own
            hint = "see to its permissions, or copy or unpack it again"
            raise TrimixError(
                f"{self.name} cannot be read: {first_line(error)}.",
                hint if self.path else "try again; what the Hub has can also be given as files",
            ) from error


class Inputs(NamedTuple):
    """What there is to be read of the language and of English; and the held-out files, by key."""

    text: list[Source]
    english: list[Source]
    kept_out: dict[str, Source]

    def identity(self) -> dict[str, Any]:
        """What of it the weights depend on.

        Of the Hub's data sets the name, not the commit: text is read once, and a run that has been
        read for must go on where the Hub cannot be reached.
        """
        known = {"text": self.text, "english": self.english}
        found: dict[str, Any] = {
            key: [one.sha256 or one.name for one in some] for key, some in known.items()
        }
        return {**found, **{f"{key} file": one.sha256 for key, one in self.kept_out.items()}}

    def check_unchanged(self) -> None:
        """Refuse files that have changed since they were found: nobody knows what was read."""
        for source in (*self.text, *self.english, *self.kept_out.values()):
            if source.path and sha256(source.path) != source.sha256:
                raise TrimixError(
                    f"{source.name} has changed while it was read.",
                    "run the same command again when nothing writes to it any more",
                )


def look(config: Config) -> Inputs:
    """Find the sources of a run."""
    kept_out = {}
    for key, path in (("held_out", config.held_out), ("test", config.test)):
        if isinstance(path, Path):
            kept_out[key] = source_of(path, config.text_field, key)
    return Inputs(
        sources(config.text, config.text_field, "text", [config.output]),
        sources(config.english, config.text_field, "english", [config.output]),
        kept_out,
    )


def sources(
    places: tuple[TextPlace, ...], field: str, key: str, made: Sequence[Path] = ()
) -> list[Source]:
    """Find out what there is, and its identity.

    Args:
        places: Where to look.
        field: Column of places that name none.
        key: Under which the places stand in the config, for messages.
        made: Files and folders of our own, which may lie in a folder of text and are no part of it.
    """
    found: list[Source] = []
    for place in places:
        column = place.field or field
        if place.hub:
            # What is wrong is said when it is read; without a network a cache may do.
            commit = (
                hub.ask(hub.Repository(key, place.where, place.revision, "dataset")).commit or ""
            )
            name = ":".join(filter(None, [place.where, place.config, place.split]))
            found.append(Source(name, place, None, column, commit=commit))
            continue
        for path in _files(place.where, key, made):
            try:
                size, digest = path.stat().st_size, sha256(path)
            except OSError as error:
                raise TrimixError(
                    f"{key}: {path} cannot be read: {error.strerror}.", "see to its permissions"
                ) from error
            found.append(Source(values.writable(str(path)), place, path, column, size, digest))
    return found


def source_of(path: Path, field: str, key: str) -> Source:
    """The one file that a path stands for; several are an error."""
    found = sources((TextPlace(str(path)),), field, key)
    if len(found) > 1:
        raise TrimixError(f"{key}: {path} stands for {len(found)} files.", "name one file")
    return found[0]


def _files(where: str, key: str, made: Sequence[Path]) -> list[Path]:
    """The files of a path, a folder or a pattern."""
    path = values.path(key, where)
    if path.is_dir():
        kinds = (".txt", *_ROWS, *_TABLES)
        found = [file for file in _below(path, key) if _suffix(file) in kinds]
    elif path.exists():
        found = [path]
    else:
        found = [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]
    if not path.is_file():
        ours = {_real(one) for one in made}
        found = [one for one in found if ours.isdisjoint([_real(one), *_real(one).parents])]
    files = [file for file in found if file.is_file()]
    if not files and found:
        raise TrimixError(
            f"{key}: {found[0]} is no regular file.",
            "text is read more than once, which devices and pipes do not allow: give a file",
        )
    if not files:
        raise TrimixError(
            f"{key}: there is no file {where}.",
            "correct the path (relative ones begin at the current folder); a folder is searched "
            "for .txt, .jsonl and .parquet; a data set on the Hub is {hub: owner/name}",
        )
    return files


def _real(path: Path) -> Path:
    """A path, links followed. Of a circle of links `Path.resolve` makes an error."""
    return Path(os.path.realpath(path))


def _below(folder: Path, key: str) -> list[Path]:
    """The files in a folder and below, in order; without one that is unreadable text would lack."""

    def refuse(error: OSError) -> None:
        raise TrimixError(
            f"{key}: {error.filename} cannot be read: {error.strerror}.", "see to its permissions"
        ) from error

    walked = os.walk(folder, onerror=refuse)
    return sorted(Path(where, name) for where, _, files in walked for name in files)


def _suffix(path: Path) -> str:
    """What the content is called, packed or not."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _of_file(path: Path, field: str | None) -> Iterator[Line]:
    """The lines of a text, or, where a field is named, of the rows of JSONL."""
    import fsspec

    # By itself fsspec takes .zst for text where the library for it is not installed.
    packed = "zstd" if path.suffix.lower() == ".zst" else "infer"
    with fsspec.open(str(path), "rb", compression=packed) as stream:
        yield from of_text(stream) if field is None else of_rows(stream, field)


def _of_table(rows: Any, field: str) -> Iterator[Line]:
    """The lines of a column of an iterable data set."""
    columns = rows.column_names
    if columns and field not in columns:
        raise TrimixError(
            f"There is no column {field!r}; there are {', '.join(columns)}.",
            "name the one that holds the text: text_field: …, or field: … of the place",
        )
    for number, row in enumerate(rows, 1):
        text = row.get(field)
        if isinstance(text, str):
            yield from split(text, number)
        else:
            shown = json.dumps(text, default=str)[:1000].encode()
            yield Line(number, shown, f"no text in {field}", begins=True)


def _table(path: Path, kind: str) -> Any:
    import datasets

    files = {"train": [str(path)]}
    return datasets.load_dataset(kind, data_files=files, split="train", streaming=True)


def _hub(source: Source) -> Any:
    """A data set on the Hub, at the commit that was found."""
    import datasets

    place = source.place
    revision = source.commit or place.revision
    try:
        found = datasets.load_dataset(
            place.where,
            place.config,
            split=place.split,
            revision=revision,
            streaming=place.streaming,
        )
    except Exception as error:  # gated, missing, offline: each library below has errors of its own
        raise TrimixError(
            f"The data set {place.where} cannot be had from the Hub: {first_line(error)}",
            f"check its name, config and split at https://huggingface.co/datasets/{place.where}; "
            "if it is gated accept its conditions there and `hf auth login`; or download it and "
            "give its files",
        ) from error
    if source.field in (found.column_names or []):
        found = found.select_columns([source.field])
    return found
