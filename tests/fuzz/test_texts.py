"""Text in any state, for `cpt` and `new-language`: what is kept is in the file as it was kept."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzzing import (
    Damage,
    argv_text,
    budget,
    command,
    damaged_bytes,
    inside,
    names,
    no_hang,
)
from trimix_lm_eval.training.cpt import holdout, texts
from trimix_lm_eval.training.cpt.cleaning import Cleaner
from trimix_lm_eval.training.cpt.texts import TextPlace
from trimix_lm_eval.utils.errors import TrimixError

LINES = [f"line {i} ئۇيغۇر تىلى སྐད་ཡིག, and some more of it" for i in range(30)]
PLAIN = "\n".join(LINES).encode() + b"\n"
ROWS = "".join(json.dumps({"text": line, "id": i}) + "\n" for i, line in enumerate(LINES)).encode()
#: By name, a sound file, and how the text comes out of it.
FILES: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "a.txt": (PLAIN, bytes),
    "a.jsonl": (ROWS, bytes),
    "a.txt.gz": (gzip.compress(PLAIN), gzip.decompress),
    "a.jsonl.xz": (lzma.compress(ROWS), lzma.decompress),
    "a.txt.bz2": (bz2.compress(PLAIN), bz2.decompress),
}


@pytest.fixture(scope="module")
def place(pico, tmp_path_factory):
    with inside(tmp_path_factory.mktemp("texts")) as folder:
        (folder / "small_base").symlink_to(pico("llama", padded=False)["small_base"])
        yield folder


def cleaned(path: Path) -> list[str]:
    """The lines that are kept of a file."""
    cleaner = Cleaner(io.StringIO(), "uig_Arab", deduplicate=False, nfc=False)
    found = texts.sources((TextPlace(str(path)),), "text", "text")
    documents = [document for source in found for document in cleaner.documents(source)]
    account = cleaner.account
    assert account.kept == sum(len(document.lines) for document in documents) <= account.lines
    return [line for document in documents for line in document.lines]


@budget(80)
@given(name=st.sampled_from(sorted(FILES)), damage=damaged_bytes())
def test_files_of_text(place, name, damage: Damage):
    sound, opened = FILES[name]
    data = damage(sound)
    Path(name).write_bytes(data)
    try:
        with no_hang():
            found = cleaned(Path(name))
    except TrimixError as error:
        assert name in str(error)
        return
    if name.startswith("a.txt"):
        text = data if name == "a.txt" else opened(data)
        assert all(line.encode() in text for line in found)
    else:
        lines = (data if name == "a.jsonl" else opened(data)).split(b"\n")
        rows = [_row(line) for line in lines]
        assert all(any(line in row for row in rows) for line in found)


def _row(line: bytes) -> str:
    try:
        found = json.loads(line.removeprefix(b"\xef\xbb\xbf").strip())
    except (ValueError, RecursionError):
        return ""
    return str(found.get("text")) if isinstance(found, dict) else ""


@budget(8)
@given(damage=damaged_bytes())
def test_tables(place, damage: Damage):
    """Of what Parquet holds, only what can be read at all is known: its own checks are few."""
    if not Path("kept.parquet").exists():
        Dataset.from_dict({"text": LINES}).to_parquet("kept.parquet")
    Path("a.parquet").write_bytes(damage(Path("kept.parquet").read_bytes()))
    try:
        with no_hang():
            cleaned(Path("a.parquet"))
    except TrimixError as error:
        assert "a.parquet" in str(error)


@budget(60)
@given(name=st.sampled_from(sorted(FILES)), damage=damaged_bytes())
def test_held_out_text(place, name, damage: Damage):
    """Is measured as it is, or refused."""
    sound, _ = FILES[name]
    data = damage(sound)
    Path(name).write_bytes(data)
    try:
        with no_hang():
            found = holdout.read(Path(name), "text")
    except TrimixError as error:
        assert name in str(error)
        return
    if name == "a.txt":
        lines = (
            data.removeprefix(b"\xef\xbb\xbf").decode().replace("\r\n", "\n").replace("\r", "\n")
        )
        assert "".join("".join(found).split()) == "".join(lines.split())


@budget(8)
@given(
    damage=damaged_bytes(),
    name=st.sampled_from(["a.txt", "a.jsonl"]),
    given_texts=st.fixed_dictionaries(
        {}, optional={"--name": names, "--license": names, "--text-field": names, "--output": names}
    ),
)
def test_new_languages(place, damage: Damage, name, given_texts):
    """Whatever is written reads back as what was given."""
    for folder in Path().iterdir():
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
    sound = b"".join(f"{line} {i}\n".encode() for i in range(5) for line in LINES)
    rows = b"".join(
        json.dumps({"text": row.decode()}).encode() + b"\n" for row in sound.splitlines()
    )
    Path(name).write_bytes(damage(sound if name == "a.txt" else rows))
    asked = {key: argv_text(text) for key, text in given_texts.items()}
    argv = ["new-language", "uig_Arab", "--base", "small_base", "--large", "small_base"]
    found = command([*argv, "--text", name, *(f"{key}={text}" for key, text in asked.items())])
    if found.code == 0:
        output = Path(asked.get("--output", "uig_Arab")).expanduser()
        for file in output.rglob("*.yaml"):
            yaml.safe_load(file.read_text(encoding="utf-8").replace("!function", ""))
        written = yaml.safe_load((output / "cpt.yaml").read_text(encoding="utf-8"))
        assert written["license"] == asked.get("--license", "")
        assert written["text"] == [str(Path(name).resolve())]
