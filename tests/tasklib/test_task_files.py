"""Where the tasks' data comes from, and every way in which it can be missing or damaged.

Rows are those of `task_data`, as many as were published; SIB-200 and Belebele are made up here. The
Hub is a server in this process, asked by the real client in another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks._yaml_loader import load_yaml

from tests.support.hub import COMMIT, Hub, client
from tests.support.running import program
from tests.support.task_data import FOLDERS, SIZES, rows, write_locked_zip
from trimix_lm_eval.tasklib import belebele, hub_files, milic_eval, places, sib200
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import tasks_dir

Row = dict[str, Any]
Files = dict[str, bytes]
TOPICS = sib200.LABELS
#: What `load` needs to know besides the language.
PAIR = {"source": "bo", "target": "en"}
MILIC = {
    task: partial(milic_eval.load, task, "bo", **(PAIR if task.startswith("translation") else {}))
    for task in SIZES
}
LOAD: dict[str, Callable[..., Any]] = {
    **MILIC,
    "sib200": partial(sib200.load, "ben_Beng"),
    "belebele": partial(belebele.load, "ben_Beng"),
}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """No place but the one that a test gives; never the Hub itself."""
    for name in ("TRIMIX_DATA_DIR", "TRIMIX_DATA_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_files, "download", lambda *_: pytest.fail("asked the Hub"))


# ---------------------------------------------------------------- files as published


def to_json(made: Any) -> bytes:
    return json.dumps(made, ensure_ascii=False).encode()


def to_jsonl(made: list[Any]) -> bytes:
    return b"".join(to_json(row) + b"\n" for row in made)


def to_tsv(made: list[Row]) -> bytes:
    lines = [list(made[0]), *(row.values() for row in made)]
    return "".join("\t".join(map(str, line)) + "\n" for line in lines).encode()


def topics(split: str) -> list[Row]:
    """A file of SIB-200."""
    return [
        {"index_id": 3 * i, "category": TOPICS[i % 7], "text": f"বাংলা ভাষা {split} {i}।"}
        for i in range({"train": 701, "test": 204}[split])
    ]


def questions() -> list[Row]:
    """The file of Belebele; the second question on a passage follows the first."""
    return [
        {
            "flores_passage": f"বাংলা {i // 2}",
            "question": f"কী {i}?",
            **{f"mc_answer{k}": f"{i} {k}" for k in range(1, 5)},
            "correct_answer_num": str(i % 4 + 1),
            "link": "https://example.org",
            "question_number": i % 2 + 1,
        }
        for i in range(900)
    ]


def milic_files(task: str, names: str = "hub", exemplars: str = "train_1") -> Files:
    """The two files of a task in Tibetan, under their names in one of the releases."""
    folder = FOLDERS[names][task]
    made = {split: rows(task, "bo", split) for split in ("test", exemplars)}
    if folder == "title_generation_200":
        made["test"] = made["test"][:200]
    return {f"{folder}/bo/{split}.json": to_json(of_split) for split, of_split in made.items()}


SIB200_FILES = {f"ben_Beng/{split}.tsv": to_tsv(topics(split)) for split in ("test", "train")}
BELEBELE_FILES = {"ben_Beng.jsonl": to_jsonl(questions())}


def files_of(name: str) -> Files:
    """The files of a task or benchmark, as on the Hub."""
    if name in SIZES:
        return milic_files(name)
    found = {"sib200": SIB200_FILES, "belebele": BELEBELE_FILES}[name]
    return {f"data/{path}": data for path, data in found.items()}


def write(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """One language of each benchmark, as on the Hub."""
    folder = tmp_path_factory.mktemp("published")
    for name in LOAD:
        write(folder, files_of(name))
    return folder


@contextmanager
def changed(path: Path, data: bytes | None) -> Iterator[Path]:
    """A file with another content, or without the file, for a while."""
    before = path.read_bytes()
    try:
        path.unlink() if data is None else path.write_bytes(data)
        yield path
    finally:
        path.write_bytes(before)


def refusal(name: str, **options: Any) -> str:
    """The message with which data is refused: what and where, then what to do."""
    with pytest.raises(TrimixError) as caught:
        LOAD[name](**options)
    message = str(caught.value)
    what, _, hint = message.partition("\n  -> ")
    assert len(what) > 10 and len(hint) > 10 and "\n" not in what + hint, message
    return message


# ---------------------------------------------------------------- a folder


@pytest.mark.parametrize(
    ("task", "names"), [(task, names) for names, tasks in FOLDERS.items() for task in tasks]
)
def test_every_task_is_loaded_whole(tmp_path, task, names):
    exemplars, _, test = SIZES[task]
    folder = write(tmp_path, milic_files(task, names))
    data = MILIC[task](data_dir=str(folder))
    # TriMix's authors use 200 of the 900 titles.
    assert len(data["test"]) == (200 if task == "title_generation" else test)
    assert len(data["exemplars"]) == exemplars
    published = [str(row["id"]) for row in rows(task, "bo", "test")]
    if task != "title_generation":
        assert data["test"]["id"] == published
    assert len(set(data["test"]["id"]) & set(published)) == len(data["test"])


@pytest.mark.parametrize("exemplars", ["train_2", "train_3"])
def test_other_exemplars_are_read_instead(tmp_path, exemplars):
    folder = write(tmp_path, milic_files("math", exemplars=exemplars))
    data = MILIC["math"](data_dir=str(folder), exemplars=exemplars)
    expected = [row["question"] for row in rows("math", "bo", exemplars)]
    assert data["exemplars"]["question"] == expected
    message = refusal("math", data_dir=str(folder))
    assert "has no math/bo/train_1.json" in message


def test_unknown_exemplars_are_an_error():
    message = refusal("math", exemplars="train_4")
    assert (
        "Unknown file of exemplars 'train_4'" in message and "train_1, train_2, train_3" in message
    )


ABOVE = {
    "math": ["", "data", "milic_eval", "milic-eval", "milic_eval/data", "milic-eval/data"],
    "sib200": ["", "data", "data/annotated", "sib200", "sib200/data", "sib200/data/annotated"],
    "belebele": ["", "data", "belebele", "belebele/data"],
}
BARE = {"math": milic_files("math"), "sib200": SIB200_FILES, "belebele": BELEBELE_FILES}


@pytest.mark.parametrize(
    ("name", "above"), [(name, above) for name, tops in ABOVE.items() for above in tops]
)
def test_a_folder_may_begin_at_any_level(tmp_path, name, above):
    write(tmp_path / above, BARE[name])
    size = {"math": 200, "sib200": 204, "belebele": 900}[name]
    assert len(LOAD[name](data_dir=str(tmp_path))["test"]) == size


def test_belebele_sets_exemplars_aside_with_all_questions_on_their_passages(published):
    given = load_yaml(tasks_dir() / "belebele" / "trimix_belebele_ben_Beng_5shot.yaml")
    data = belebele.load(**given["dataset_kwargs"]["select"], data_dir=str(published))
    assert len(data["exemplars"]) == 5
    assert len(data["test"]) == 890
    passages = {tuple(context) for context in data["exemplars"]["context"]}
    assert len(passages) == 5
    assert not passages & {tuple(context) for context in data["test"]["context"]}


def test_a_mapping_names_a_place_for_each_benchmark(tmp_path, published, monkeypatch):
    monkeypatch.setenv("TRIMIX_DATA_DIR", str(tmp_path / "not there"))
    chosen = {"milic_eval": str(published), "belebele": str(published)}
    for name in ("math", "belebele"):
        assert LOAD[name](data_dir=chosen)
    # What it does not name comes from the Hub, not from the environment.
    assert places.place_of(sib200.BENCHMARK, chosen).path is None
    assert places.place_of(sib200.BENCHMARK, {5: "x"}).path is None
    message = refusal("sib200", data_dir={**chosen, "sib2000": "x"})
    assert "'sib2000'" in message and "'sib200'?" in message
    assert "accepted: sib200" in message


@pytest.mark.parametrize("wrong", ["exemplar", "datadir", "data_passwort"])
def test_a_misspelt_option_is_an_error(published, wrong):
    with pytest.raises(TrimixError, match=f"{wrong!r}. Did you mean"):
        milic_eval.documents({"task": "math", "language": "bo"}, **{wrong: "x"})


def test_arguments_of_a_model_do_not_meddle(published):
    given = {"task": "generate", "language": "xx", "held_out": 3, "data_dir": str(published)}
    plain = belebele.load("ben_Beng", data_dir=str(published))
    made = belebele.documents({"language": "ben_Beng"}, **given, exemplars="train_2")
    assert made["test"].to_list() == plain["test"].to_list()


def test_another_language_needs_its_name(tmp_path):
    found = {name.replace("ben_Beng", "eng_Latn"): data for name, data in SIB200_FILES.items()}
    folder = str(write(tmp_path, found))
    with pytest.raises(TrimixError, match="language_name: "):
        sib200.load("eng_Latn", data_dir=folder)
    made = sib200.load("eng_Latn", language_name="English", data_dir=folder)
    assert set(made["test"]["language"]) == {"English"}


def test_the_environment_names_a_place(tmp_path, published, monkeypatch):
    monkeypatch.setenv("TRIMIX_DATA_DIR", str(published))
    for name in ABOVE:
        assert LOAD[name]()
    # Metadata wins.
    message = refusal("math", data_dir=str(tmp_path))
    assert str(tmp_path) in message and str(published) not in message
    monkeypatch.setenv("TRIMIX_DATA_DIR", str(tmp_path))
    assert LOAD["math"](data_dir=str(published))
    monkeypatch.setenv("TRIMIX_DATA_DIR", "")
    assert places.place_of(milic_eval.BENCHMARK).path is None


def test_a_home_folder_may_be_abbreviated(published, monkeypatch):
    monkeypatch.setenv("HOME", str(published.parent))
    assert LOAD["math"](data_dir=f"~/{published.name}")


@pytest.mark.parametrize("given", [5, ["a"], True])
def test_a_place_is_a_path(given):
    assert f"data_dir is {given!r}" in refusal("math", data_dir=given)
    assert f"data_dir is {given!r}" in refusal("math", data_dir={"milic_eval": given})


def test_a_place_must_exist(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("gone", "gone.zip", "pipe", "loop"):
        message = refusal("math", data_dir=str(tmp_path / name))
        assert f"milic_eval: there is no folder or zip file {tmp_path / name}" in message
        assert "data_dir" in message and "TRIMIX_DATA_DIR" in message


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("math", ["math/bo/test.json"]),
        (
            "text_classification",
            ["text_classification/bo/test.json", "text_classification_passage/bo/test.json"],
        ),
        (
            "title_generation",
            ["title_generation_200/bo/test.json", "title_generation/bo/test.json"],
        ),
        ("sib200", ["ben_Beng/test.tsv"]),
        ("belebele", ["ben_Beng.jsonl"]),
    ],
)
def test_a_missing_file_is_named(tmp_path, name, looked_for):
    message = refusal(name, data_dir=str(tmp_path))
    assert str(tmp_path) in message and "give the folder that contains" in message
    for path in looked_for:
        assert path in message
    assert "zip" not in message
    (tmp_path / "data.zip").write_bytes(b"")
    assert "to read data.zip give its own path as data_dir" in refusal(name, data_dir=str(tmp_path))


@pytest.mark.parametrize("name", LOAD)
def test_either_file_may_be_missing(published, name):
    for path in files_of(name):
        with changed(published / path, None):
            message = refusal(name, data_dir=str(published))
            assert path.removeprefix("data/") in message


def test_a_folder_named_like_a_file_is_no_file(tmp_path):
    (tmp_path / "math/bo/test.json").mkdir(parents=True)
    assert "has no math/bo/test.json" in refusal("math", data_dir=str(tmp_path))


def test_a_file_that_may_not_be_read_is_an_error(published, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "math/bo/test.json" in refusal("math", data_dir=str(published))


@pytest.mark.parametrize("option", ["data_password", "data_revision"])
def test_what_lm_eval_reads_as_a_number_is_an_error(option):
    # `--metadata data_password=0123` reaches us as the number 123.
    with pytest.raises(TrimixError, match=rf"{option} is 123\b.*\n  -> "):
        places.place_of(milic_eval.BENCHMARK, **{option: 123})


# ---------------------------------------------------------------- zip files


def pack(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def test_a_zip_with_two_releases_is_an_error(tmp_path):
    files = milic_files("math")
    twice = {f"{top}/{name}": data for top in ("old", "new") for name, data in files.items()}
    message = refusal("math", data_dir=pack(tmp_path / "data.zip", twice))
    assert "2 times: old/math/bo/test.json, new/math/bo/test.json" in message


def test_what_was_read_is_noted(published):
    path = published / "math/bo/test.json"
    LOAD["math"](data_dir=str(published))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert places.USED["milic_eval/math/bo/test.json"] == {"from": str(path), "sha256": digest}


@pytest.mark.parametrize("above", ["", "data/", "milic-eval-main/", "a/b/data/"])
@pytest.mark.parametrize("names", ["hub", "authors"])
def test_a_zip_may_begin_at_any_level(tmp_path, names, above):
    for task, size in (("math", 200), ("text_classification", 504), ("title_generation", 200)):
        files = {f"{above}{path}": data for path, data in milic_files(task, names).items()}
        data = MILIC[task](data_dir=pack(tmp_path / f"{task}.zip", files))
        assert len(data["exemplars"]) == SIZES[task][0]
        assert len(data["test"]) == size


@pytest.mark.parametrize("name", ["sib200", "belebele"])
def test_the_other_benchmarks_may_be_zipped_too(tmp_path, name):
    files = {f"{name}-main/{path}": data for path, data in files_of(name).items()}
    archive = pack(tmp_path / "any name.zip", files)
    assert len(LOAD[name](data_dir={name: archive})["test"]) == {"sib200": 204}.get(name, 900)


def test_what_macos_and_others_add_to_a_zip_is_passed_over(tmp_path):
    files = milic_files("math")
    # Forks come under their own top folder; other members merely end alike.
    noise = {f"__MACOSX/{path}": b"\0\5\26\7 fork" for path in files}
    noise |= {f"old-{path}": b"[]" for path in files} | {"math/bo/._test.json": b"\0\5\26\7"}
    archive = pack(tmp_path / "data.zip", {**noise, **files})
    assert len(MILIC["math"](data_dir=archive)["test"]) == 200
    message = refusal("math", data_dir=pack(tmp_path / "noise.zip", noise))
    assert "noise.zip has no math/bo/test.json in it" in message
    assert "unpacked files" in message


@pytest.fixture(scope="module")
def locked(published, tmp_path_factory) -> str:
    archive = tmp_path_factory.mktemp("locked") / "data.zip"
    names = ["math/bo/test.json", "math/bo/train_1.json"]
    return str(write_locked_zip(archive, published, names, "pä55"))


def test_a_locked_zip_opens_with_its_password(locked, monkeypatch):
    assert len(MILIC["math"](data_dir=locked, data_password="pä55")["test"]) == 200
    monkeypatch.setenv("TRIMIX_DATA_PASSWORD", "pä55")
    assert len(MILIC["math"](data_dir=locked)["test"]) == 200
    # Metadata wins.
    assert "does not open" in refusal("math", data_dir=locked, data_password="other")


def test_a_password_does_no_harm_where_none_is_needed(published, tmp_path):
    archive = pack(tmp_path / "data.zip", milic_files("math"))
    assert MILIC["math"](data_dir=archive, data_password="x")
    assert MILIC["math"](data_dir=str(published), data_password="x")


def test_a_locked_zip_without_password(locked):
    message = refusal("math", data_dir=locked)
    assert f"{locked}/data/math/bo/test.json is locked with a password" in message
    assert "data_password" in message and "TRIMIX_DATA_PASSWORD" in message


def test_a_wrong_password_even_if_the_format_takes_it_for_right(locked):
    # One in 256 passes for right at first.
    passing = [word for word in map(str, range(1500)) if opens(locked, word)]
    assert passing
    for word in ("wrong", "pa55", *passing[:4]):
        message = refusal("math", data_dir=locked, data_password=word)
        assert f"{locked}/data/math/bo/test.json does not open with this password" in message
        assert "data_password" in message


def opens(archive: str, password: str) -> bool:
    with zipfile.ZipFile(archive) as opened:
        try:
            opened.open(opened.infolist()[0], pwd=password.encode()).close()
        except RuntimeError:
            return False
        return True


def marked(archive: str, local: dict[int, int], directory: dict[int, int]) -> str:
    """The archive with 16-bit fields of every header changed; offsets as in PKWARE's appnote."""
    data = bytearray(Path(archive).read_bytes())
    for signature, fields in ((b"PK\x03\x04", local), (b"PK\x01\x02", directory)):
        at = data.find(signature)
        while at >= 0:
            for offset, value in fields.items():
                struct.pack_into("<H", data, at + offset, value)
            at = data.find(signature, at + 4)
    Path(archive).write_bytes(data)
    return archive


def test_a_zip_locked_with_aes(tmp_path):
    archive = pack(tmp_path / "data.zip", milic_files("math"), zipfile.ZIP_STORED)
    marked(archive, {6: 1, 8: 99}, {8: 1, 10: 99})  # flags: locked; method: AES
    for password in (None, "pä55"):
        message = refusal("math", data_dir=archive, data_password=password)
        assert f"{archive}/math/bo/test.json is locked with AES" in message
        assert "7z x" in message and "give the folder as data_dir" in message


def test_a_method_that_python_does_not_know(tmp_path):
    archive = pack(tmp_path / "data.zip", milic_files("math"))
    marked(archive, {8: 9}, {10: 9})  # Deflate64, which Windows writes for large files
    message = refusal("math", data_dir=archive)
    assert f"{archive}/math/bo/test.json" in message and "compress" in message


@pytest.mark.parametrize(
    "data", [b"", b"no zip at all", b"PK\x03\x04 cut", b"PK\x05\x06" + bytes(9)]
)
def test_what_is_no_zip(tmp_path, data):
    path = tmp_path / "data.zip"
    path.write_bytes(data)
    message = refusal("math", data_dir=str(path))
    assert f"milic_eval: {path} cannot be read as a zip file" in message
    assert "download it again" in message


def cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


def flip(data: bytearray) -> None:
    data[200] ^= 255  # within the first member


def shorten(data: bytearray) -> None:
    """The last member seems to go on beyond the end of the file."""
    at = data.rfind(b"PK\x01\x02")
    struct.pack_into("<2L", data, at + 20, 1 << 30, 1 << 30)


def misplace(data: bytearray) -> None:
    """Members seem to begin before the file does."""
    at = data.rfind(b"PK\x05\x06")
    (offset,) = struct.unpack_from("<L", data, at + 16)
    struct.pack_into("<L", data, at + 16, offset + 100_000)


def misname(data: bytearray) -> None:
    """A name is said to be UTF-8, and is not."""
    at = data.rfind(b"PK\x01\x02")
    struct.pack_into("<H", data, at + 8, 0x800)
    data[at + 46] = 0xFF


@pytest.mark.parametrize(
    ("method", "damage"),
    [
        (zipfile.ZIP_STORED, cut),
        (zipfile.ZIP_STORED, flip),
        (zipfile.ZIP_DEFLATED, flip),
        (zipfile.ZIP_BZIP2, flip),
        (zipfile.ZIP_LZMA, flip),
        (zipfile.ZIP_STORED, shorten),
        (zipfile.ZIP_DEFLATED, misplace),
        (zipfile.ZIP_DEFLATED, misname),
    ],
)
def test_a_damaged_zip(tmp_path, method, damage):
    archive = tmp_path / "data.zip"
    pack(archive, milic_files("math"), method)
    data = bytearray(archive.read_bytes())
    damage(data)
    archive.write_bytes(data)
    message = refusal("math", data_dir=str(archive))
    assert str(archive) in message and "again" in message


def test_whatever_the_damage_it_is_an_error_of_ours(tmp_path):
    file = places.File("math/bo/test.json")
    archive = tmp_path / "data.zip"
    pack(archive, {"བོད.txt": b"x", file.hub: b"[1, 2, 3]" * 9})
    whole, generator = archive.read_bytes(), random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        archive.write_bytes(data)
        try:
            found = places.fetch(milic_eval.BENCHMARK, file, places.Place(archive, None, "main"))
        except TrimixError as error:
            assert str(archive) in str(error)
        else:
            assert found.data == b"[1, 2, 3]" * 9  # its checksum was right


# ---------------------------------------------------------------- rows that are not as published


def put(key: str, value: Any, row: int = 3) -> Callable[[list[Any]], None]:
    return lambda made: made[row].update({key: value})


def keep(count: int) -> Callable[[list[Any]], None]:
    return lambda made: made.__delitem__(slice(count, None))


READING = "reading_comprehension"
#: A change to the fourth row of a file (mostly), and what the message says of it.
JSON_FAULTS = {
    "no column": (
        READING,
        lambda made: made[3].pop("question"),
        ["row 4 has no column 'question'; its columns are id, ", "has another layout"],
    ),
    "no id": (READING, lambda made: made[3].pop("id"), ["row 4 has no column 'id'"]),
    "empty": (READING, put("question", ""), ["question of row 4 is '', not a text"]),
    "spaces": (READING, put("question", " \n\u3000\u2028"), ["question of row 4 is ", "not empty"]),
    "null": (READING, put("question", None), ["question of row 4 is None"]),
    "a number": (READING, put("question", 7), ["question of row 4 is 7"]),
    "a long value": (READING, put("question", ["x" * 999]), ["question of row 4 is ['xxx", "…"]),
    "no list": (READING, put("options", "AB"), ["options of row 4 is 'AB', not a list of texts"]),
    "no options": (READING, put("options", []), ["options of row 4 is []"]),
    "empty option": (READING, put("options", ["x", " "]), ["options of row 4 is ['x', ' ']"]),
    "no context": (READING, put("context", []), ["context of row 4 is []"]),
    "no letter": (READING, put("answer", "F"), ["answer of row 4 is 'F', not one of A, B, C"]),
    "small letter": (READING, put("answer", "a"), ["answer of row 4 is 'a'"]),
    "two letters": (READING, put("answer", "AB"), ["answer of row 4 is 'AB'"]),
    "an id twice": (READING, lambda made: made[5].update(id=made[2]["id"]), ["row 6 has id "]),
    "an id as text": (READING, lambda made: made[5].update(id=str(made[2]["id"])), ["row 6 has"]),
    "id of no kind": (READING, put("id", True), ["id of row 4 is True, not a number or a text"]),
    "too few": (READING, lambda made: made.pop(7), ["rows; ", "were published", "be compared"]),
    "too many": (READING, lambda made: made.append({**made[0], "id": "new"}), ["were published"]),
    "none": (READING, keep(0), ["has 0 rows; "]),
    "no object": (READING, lambda made: made.append(["x"]), ["is not a list of JSON objects"]),
    "no number": ("math", put("answer", "12 books"), ["answer of row 4 is '12 books', not a num"]),
    "comma": ("math", put("answer", "1,200"), ["answer of row 4 is '1,200', not a number"]),
    "not a number": ("math", put("answer", True), ["answer of row 4 is True, not a number"]),
    "nan": ("math", put("answer", "nan"), ["answer of row 4 is 'nan'"]),
    "too large": ("math", put("answer", 10**400), ["answer of row 4 is 1000", "not a number"]),
    "label as text": (
        "text_classification",
        put("label", "law"),
        ["label of row 4 is 'law', not a pair of texts named zh and en"],
    ),
    "half a label": (
        "text_classification",
        put("label", {"en": "law"}),
        ["label of row 4 is {'en"],
    ),
    "no target": ("translation_dialogue", lambda made: made[3].pop("en"), ["no column 'en'"]),
    "empty source": ("translation_dialogue", put("bo", "\t"), ["bo of row 4 is '\\t', not a text"]),
    "empty title": ("title_generation", put("title", ""), ["title of row 4 is ''"]),
    "empty word": ("vocabulary", put("word", ""), ["word of row 4 is ''"]),
}


@pytest.mark.parametrize("split", ["test", "train_1"])
@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_rows_of_milic_eval_are_checked(published, fault, split):
    task, change, phrases = JSON_FAULTS[fault]
    made = rows(task, "bo", split)
    change(made)
    path = published / FOLDERS["hub"][task] / "bo" / f"{split}.json"
    with changed(path, to_json(made)):
        message = refusal(task, data_dir=str(published))
    assert message.startswith(f"{path}")
    for phrase in phrases:
        assert phrase in message


@pytest.mark.parametrize(
    ("split", "count", "published_count"), [("test", 199, 200), ("train_1", 9, 10)]
)
def test_a_shorter_set_is_an_error_with_both_counts(published, split, count, published_count):
    path = published / "math/bo" / f"{split}.json"
    with changed(path, to_json(rows("math", "bo", split)[:count])):
        message = refusal("math", data_dir=str(published))
    assert f"{path} has {count} rows; {published_count} were published" in message


def test_drawn_titles_are_two_hundred(tmp_path):
    made = milic_files("title_generation", "authors")
    (name,) = (name for name in made if "/test" in name)
    made[name] = to_json(rows("title_generation", "bo", "test"))
    message = refusal("title_generation", data_dir=str(write(tmp_path, made)))
    assert f"{name} has 900 rows; 200 were published" in message


def test_an_answer_beyond_the_options_is_an_error(published):
    made = rows(READING, "bo", "test")
    made[3] |= {"options": ["x", "y", "z"], "answer": "D", "id": "q4"}
    with changed(published / READING / "bo/test.json", to_json(made)):
        message = refusal(READING, data_dir=str(published))
    assert "question q4 (bo): the answer is D, but there are 3 options" in message


def test_more_options_than_letters_are_an_error(published):
    made = rows(READING, "bo", "test")
    made[3] |= {"options": list("uvwxyz"), "answer": "A"}
    with changed(published / READING / "bo/test.json", to_json(made)):
        refusal(READING, data_dir=str(published))


def test_a_step_by_step_solution_must_be_there(published):
    path = published / "math/bo/train_1.json"
    for cot, shown in (({"zh": "x", "en": " "}, "{'zh': 'x', 'en': ' '}"), ("x", "'x'")):
        made = rows("math", "bo", "train_1")
        made[3]["cot"] = cot
        with changed(path, to_json(made)):
            message = refusal("math", data_dir=str(published))
        assert f"{path}: cot of row 4 is {shown}, not a pair of texts" in message


@pytest.mark.parametrize("split", ["test", "train_1"])
def test_an_unknown_label_is_an_error(published, split):
    made = rows("text_classification", "bo", split)
    made[3]["label"] = {"zh": "体育", "en": "sports"}
    path = published / "text_classification_passage/bo" / f"{split}.json"
    with changed(path, to_json(made)):
        message = refusal("text_classification", data_dir=str(published))
    assert "its labels are economy, education, law, sports, travel" in message
    assert "published were education, economy, law, travel" in message


@pytest.mark.parametrize("split", ["test", "train_1"])
def test_a_label_with_two_names_is_an_error(published, split):
    # In a Chinese prompt, an exemplar whose label has another name than in the list is lost.
    made = rows("text_classification", "bo", split)
    made[3]["label"]["zh"] += "类"
    path = published / "text_classification_passage/bo" / f"{split}.json"
    with changed(path, to_json(made)):
        refusal("text_classification", data_dir=str(published), prompt="zh")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n"
#: What becomes of a file's bytes, and what the message says of it; in files of which kinds.
FILE_FAULTS = {
    "empty": (lambda data: b"", ["json"], ["is not JSON: Expecting value"]),
    "no rows": (lambda data: b"", ["jsonl", "tsv"], ["has 0 rows; ", "were published"]),
    "cut": (lambda data: data[: len(data) // 2], ["json", "jsonl"], [" is not "]),
    "cut at a line": (
        lambda data: data[: data.rindex(b"\n", 0, -1) + 1],
        ["jsonl", "tsv"],
        ["rows;"],
    ),
    "latin": (
        lambda data: b'["caf\xe9"]' + data,
        ["json", "jsonl", "tsv"],
        ["is not UTF-8 (byte 5)"],
    ),
    "utf-16": (
        lambda data: data.decode().encode("utf-16"),
        ["json", "tsv"],
        ["is not UTF-8 (byte 0)"],
    ),
    "pointer": (lambda data: LFS, ["json", "jsonl", "tsv"], ["is a pointer of Git LFS"]),
    "page": (lambda data: b"<!doctype html>", ["json", "jsonl"], ["is not JSON"]),
    "nested": (lambda data: b"[" * 99_999, ["json", "jsonl"], ["is not JSON"]),
    "digits": (lambda data: b"[" + b"1" * 9999 + b"]", ["json", "jsonl"], ["is not JSON"]),
    "wrapped": (lambda data: b'{"data": ' + data + b"}", ["json"], ["not a list of JSON objects"]),
    "lists": (lambda data: b"[1]\n" + data, ["jsonl"], ["is not a list of JSON objects"]),
    "an array": (lambda data: b"[" + data.replace(b"}\n{", b"},{") + b"]", ["jsonl"], [" is not "]),
}
KINDS = {"json": "math", "jsonl": "belebele", "tsv": "sib200"}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(fault, kind) for fault, (_, kinds, _) in FILE_FAULTS.items() for kind in kinds],
)
def test_files_are_checked(published, fault, kind):
    change, _, phrases = FILE_FAULTS[fault]
    for name in files_of(KINDS[kind]):
        path = published / name
        with changed(path, change(path.read_bytes())):
            message = refusal(KINDS[kind], data_dir=str(published))
        assert message.startswith(str(path)) and "download the file again" in message
        for phrase in phrases:
            assert phrase in message


@pytest.mark.parametrize("name", ["math", "sib200", "belebele"])
def test_a_byte_order_mark_and_line_ends_of_windows_make_no_difference(published, name):
    expected = LOAD[name](data_dir=str(published))
    marked = {path: (published / path).read_bytes() for path in files_of(name)}
    windows = {path: data.replace(b"\n", b"\r\n") for path, data in marked.items()}
    for start, files in ((b"\xef\xbb\xbf", marked), (b"", windows), (b"\xef\xbb\xbf", windows)):
        for path, data in files.items():
            (published / path).write_bytes(start + data)
        try:
            found = LOAD[name](data_dir=str(published))
            assert {k: v.to_list() for k, v in found.items()} == {
                k: v.to_list() for k, v in expected.items()
            }
        finally:
            write(published, marked)


# ---------------------------------------------------------------- SIB-200 and Belebele


def test_separators_of_unicode_do_not_end_a_row(published):
    text = "বাংলা\u2028ভাষা\u2029\x85\x0b\x0c\x1c."
    made = questions()
    made[3]["question"] = text
    with changed(published / "data/ben_Beng.jsonl", to_jsonl(made) + b"\n  \n"):
        data = LOAD["belebele"](data_dir=str(published))
    assert data["test"][3]["question"] == text and len(data["test"]) == 900
    sentences = topics("test")
    sentences[3]["text"] = text
    with changed(published / "data/ben_Beng/test.tsv", to_tsv(sentences) + b"\n"):
        data = LOAD["sib200"](data_dir=str(published))
    assert data["test"][3]["text"] == text and len(data["test"]) == 204


def test_quotes_in_tsv_are_those_of_csv(published):
    made = topics("test")
    written = {
        '"""বাংলা"" ভাষা"': '"বাংলা" ভাষা',  # quoted, with marks doubled
        '"ক\tখ"': "ক\tখ",
        '"ক\nখ"': "ক\nখ",
        'a "b" c': 'a "b" c',  # within a field that does not begin with one
        "'x'": "'x'",
    }
    for row, text in zip(made, written, strict=False):
        row["text"] = text
    with changed(published / "data/ben_Beng/test.tsv", to_tsv(made)):
        data = LOAD["sib200"](data_dir=str(published))
    assert data["test"]["text"][: len(written)] == list(written.values())
    assert len(data["test"]) == 204


TSV_FAULTS = {
    "no column": (lambda text: text.replace("category", "topic", 1), ["no column 'category'"]),
    "no header": (lambda text: text.split("\n", 1)[1], ["no column 'index_id'"]),
    "too few fields": (
        lambda text: line(text, 4, "9\ttravel"),
        ["row 4 has 2 fields, its header has 3"],
    ),
    "too many fields": (lambda text: line(text, 4, "9\ttravel\tx\ty"), ["row 4 has 4 fields"]),
    "commas": (lambda text: text.replace("\t", ","), [" has "]),
    "open quote": (lambda text: line(text, 4, '9\ttravel\t"বাংলা'), ["is not a TSV file"]),
    "text after a quote": (lambda text: line(text, 4, '9\ttravel\t"x" y'), ["is not a TSV file"]),
    "two open quotes": (
        lambda text: line(line(text, 4, '9\ttravel\t"x'), 6, '15\ttravel\ty"'),
        ["rows; "],
    ),
    "empty text": (lambda text: line(text, 4, "9\ttravel\t "), ["text of row 4 is ' '"]),
    "no category": (lambda text: line(text, 4, "9\t\tx"), ["category of row 4 is ''"]),
    "no id": (lambda text: line(text, 4, "\ttravel\tx"), ["index_id of row 4 is ''"]),
    "category": (
        lambda text: line(text, 4, "9\tTravel\tx"),
        ["category of row 4 is 'Travel', not one of the seven topics"],
    ),
    "repeated": (
        lambda text: line(text, 4, text.split("\n")[2]),
        ["row 4 has index_id ", " again"],
    ),
    "a row more": (lambda text: f"{text}1\ttravel\tx\n", ["rows; "]),
    "a row less": (lambda text: text[: text[:-1].rindex("\n") + 1], ["rows; "]),
}


def line(text: str, row: int, other: str) -> str:
    """The text with another line in place of a row."""
    lines = text.split("\n")
    lines[row] = other
    return "\n".join(lines)


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("fault", TSV_FAULTS)
def test_rows_of_sib200_are_checked(published, fault, split):
    change, phrases = TSV_FAULTS[fault]
    path = published / f"data/ben_Beng/{split}.tsv"
    with changed(path, change(path.read_text(encoding="utf-8")).encode()):
        message = refusal("sib200", data_dir=str(published))
    assert str(path) in message and "download the file again" in message
    for phrase in phrases:
        assert phrase in message


BELEBELE_FAULTS = {
    "repeated": (
        lambda made: made.__setitem__(3, made[2]),
        ["row 4 has flores_passage and question and ", " again"],
    ),
    "no column": (lambda made: made[3].pop("mc_answer4"), ["row 4 has no column 'mc_answer4'"]),
    "empty": (put("mc_answer2", "\n"), ["mc_answer2 of row 4 is '\\n', not a text"]),
    "a number": (put("question", 1), ["question of row 4 is 1"]),
    "passage": (put("flores_passage", ""), ["flores_passage of row 4 is ''"]),
    "beyond": (put("correct_answer_num", "5"), ["num of row 4 is '5', not one of 1, 2, 3, 4"]),
    "zero": (put("correct_answer_num", 0), ["correct_answer_num of row 4 is 0"]),
    "letter": (put("correct_answer_num", "A"), ["correct_answer_num of row 4 is 'A'"]),
    "yes": (put("correct_answer_num", True), ["correct_answer_num of row 4 is True"]),
    "too few": (keep(899), ["has 899 rows; 900 were published"]),
    "too many": (lambda made: made.append(made[0]), ["has 901 rows; 900 were published"]),
}


@pytest.mark.parametrize("fault", BELEBELE_FAULTS)
def test_rows_of_belebele_are_checked(published, fault):
    change, phrases = BELEBELE_FAULTS[fault]
    made = questions()
    change(made)
    path = published / "data/ben_Beng.jsonl"
    with changed(path, to_jsonl(made)):
        message = refusal("belebele", data_dir=str(published))
    assert message.startswith(str(path))
    for phrase in phrases:
        assert phrase in message


def test_an_answer_of_belebele_may_be_a_number(published):
    made = questions()
    for row in made:
        row["correct_answer_num"] = int(row["correct_answer_num"])
    expected = LOAD["belebele"](data_dir=str(published))["test"].to_list()
    with changed(published / "data/ben_Beng.jsonl", to_jsonl(made)):
        assert LOAD["belebele"](data_dir=str(published))["test"].to_list() == expected


def test_the_exemplars_of_another_benchmark_are_ignored(published):
    # `--metadata '{"exemplars": "train_2"}'` with trimix_all reaches all three.
    assert LOAD["sib200"](data_dir=str(published), exemplars="train_2")
    assert len(LOAD["belebele"](data_dir=str(published), exemplars="train_2")["test"]) == 900


# ---------------------------------------------------------------- one field of one row

CHOICE = ["id", "context", "context.0", "options", "options.0", "options.2", "answer"]
LABELLED = ["id", "text", "label", "label.en", "label.zh"]
USED = {
    "response_selection": CHOICE,
    "reading_comprehension": [*CHOICE, "question"],
    "text_classification": LABELLED,
    "title_generation": ["id", "title", "content"],
    "math": ["id", "question", "answer"],
    "translation_dialogue": ["id", "bo", "en"],
    "vocabulary": ["id", "word", "options", "options.1", "answer"],
    "text_classification_sentence": LABELLED,
    "translation_article": ["id", "bo", "en"],
    "sib200": ["index_id", "category", "text"],
    "belebele": [
        *("flores_passage", "question", "correct_answer_num"),
        *("mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4"),
    ],
}
EMPTY = ["", " ", "\u00a0", "\u3000 ", None, [], {}]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(list(USED)), st.data())
def test_an_empty_field_anywhere_is_an_error(published, name, data):
    path = data.draw(st.sampled_from(list(files_of(name))))
    field = data.draw(st.sampled_from(USED[name] + ["cot.en"] * ("math/bo/train" in path)))
    kind = Path(path).suffix
    value = data.draw(st.sampled_from(EMPTY[:4] if kind == ".tsv" else EMPTY))
    split = Path(path).stem
    if name in SIZES:
        made, packed = rows(name, "bo", split), to_json
    elif name == "sib200":
        made, packed = topics(split), to_tsv
    else:
        made, packed = questions(), to_jsonl
    number = data.draw(st.integers(0, len(made) - 1))
    key, _, inner = field.partition(".")
    if not inner:
        made[number][key] = value
    else:
        at = int(inner) if inner.isdigit() else inner
        made[number][key][0 if inner.isdigit() and at >= len(made[number][key]) else at] = value
    with changed(published / path, packed(made)):
        message = refusal(name, data_dir=str(published))
    assert f"{published / path}: {key} of row {number + 1} is " in message


# ---------------------------------------------------------------- the Hub

CLIENT = """
import json, sys
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.tasklib import belebele, milic_eval, sib200
modules = {"sib200": sib200, "belebele": belebele}
for name, options in json.loads(sys.argv[1]):
    try:
        if name in modules:
            data = modules[name].load("ben_Beng", **options)
        else:
            data = milic_eval.load(name, "bo", **options)
        print(json.dumps({split: len(rows) for split, rows in data.items()}))
    except TrimixError as error:
        print(json.dumps(str(error)))
"""
REPOSITORIES = ("pkupie/milic-eval", "Davlan/sib200", "facebook/belebele")
PINNED = {"sib200": sib200.BENCHMARK.revision, "belebele": belebele.BENCHMARK.revision}


def ask(home: Path, endpoint: str, *cases: tuple[str, dict], **env: str) -> list[Any]:
    """Load each case in a fresh process; return sizes or a message."""
    ran = client(home, endpoint, "-c", CLIENT, json.dumps(cases), **env)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "Traceback" not in ran.stderr
    return [json.loads(printed) for printed in ran.stdout.splitlines()]


MATH = {"test": 200, "exemplars": 10}
OF_SIB200 = {"test": 204, "exemplars": 701}


@pytest.fixture(scope="module")
def online(published, tmp_path_factory):
    """What a first run got, what the server was asked for, and the cache that it leaves behind."""
    home = tmp_path_factory.mktemp("home")
    partly = tmp_path_factory.mktemp("partly")
    for name in ("math", READING, "sib200", "belebele"):
        write(partly, files_of(name))
    commits = {"Davlan/sib200": PINNED["sib200"], "facebook/belebele": PINNED["belebele"]}
    cases = {
        "math": ("math", {}),
        "reading": (READING, {}),
        "sib200": ("sib200", {}),
        "belebele": ("belebele", {}),
        "missing": ("vocabulary", {}),
        "revision": ("math", {"data_revision": "v9"}),
        "commit": ("math", {"data_revision": COMMIT}),
        "unpinned": ("sib200", {"data_revision": "main"}),
    }
    with Hub({}, datasets=dict.fromkeys(REPOSITORIES, partly), commits=commits) as server:
        got = ask(home, server.endpoint, *cases.values())
    return home, dict(zip(cases, got, strict=True)), server.asked


def test_files_come_from_the_hub_by_path(online):
    _, got, asked = online
    assert got["math"] == got["commit"] == MATH
    assert got["reading"] == {"test": 200, "exemplars": 10}
    assert got["sib200"] == got["unpinned"] == OF_SIB200
    assert got["belebele"] == {"test": 900}
    fetched = {path.split("/", 6)[6] for path in asked if "/resolve/" in path}
    expected = {name for task in ("math", READING) for name in milic_files(task)}
    expected |= {*files_of("sib200"), *files_of("belebele"), "vocabulary/bo/test.json"}
    assert fetched == expected  # no listing, no script, no file of another task


def test_a_branch_is_looked_up_once_for_all_files(online):
    _, _, asked = online
    assert asked.count("/api/datasets/pkupie/milic-eval/revision/main") == 1
    folders = {path.split("/")[5] for path in asked if "milic-eval/resolve" in path}
    assert folders == {COMMIT, "v9"}


def test_pinned_commits_are_asked_for(online):
    _, _, asked = online
    for name, repository in (("sib200", "Davlan/sib200"), ("belebele", "facebook/belebele")):
        folders = {path.split("/")[5] for path in asked if f"{repository}/resolve" in path}
        assert folders == {PINNED[name]} and len(PINNED[name]) == 40


def test_a_file_that_a_repository_does_not_have(online):
    _, got, _ = online
    assert "(pkupie/milic-eval) has no file vocabulary/bo/test.json" in got["missing"]
    assert "data_revision" in got["missing"] and "data_dir" in got["missing"]


def test_a_revision_that_a_repository_does_not_have(online):
    _, got, _ = online
    assert "pkupie/milic-eval has no revision 'v9'" in got["revision"]
    assert "https://huggingface.co/datasets/pkupie/milic-eval/commits" in got["revision"]


def test_repositories_that_do_not_answer_as_they_should(published, tmp_path):
    datasets = {name: published for name in REPOSITORIES if name != "Davlan/sib200"}
    refused = {"gated": ["pkupie/milic-eval"], "down": ["facebook/belebele"]}
    cases = [("math", {}), ("sib200", {"data_revision": "main"}), ("belebele", {})]
    with Hub({}, datasets=datasets, **refused) as server:
        gated, unknown, down = ask(tmp_path, server.endpoint, *cases)
    assert "milic_eval (pkupie/milic-eval) is gated" in gated
    assert "accept the conditions at https://huggingface.co/datasets/pkupie/milic-eval," in gated
    assert "`hf auth login`" in gated and "HF_TOKEN" in gated
    assert "sib200 (Davlan/sib200): there is no such repository on the Hub" in unknown
    assert "local folder" not in unknown
    assert f"belebele (facebook/belebele@{PINNED['belebele']}): the Hub cannot be reached" in down
    assert "data/ben_Beng.jsonl" in down and "data_dir" in down


OFFLINE = ("sib200", {}), (READING, {}), ("math", {"data_revision": COMMIT}), ("vocabulary", {})


@pytest.fixture(scope="module")
def offline(online):
    home, _, _ = online
    return ask(home, "http://127.0.0.1:9", *OFFLINE, HF_HUB_OFFLINE="1")


@pytest.fixture(scope="module")
def out_of_reach(online):
    home, _, _ = online
    return ask(home, "http://127.0.0.1:9", *OFFLINE)


@pytest.mark.parametrize("how", ["offline", "out_of_reach"])
def test_what_is_in_the_cache_needs_no_hub(how, request):
    pinned, _, commit, _ = request.getfixturevalue(how)
    assert (pinned, commit) == (OF_SIB200, MATH)


@pytest.mark.parametrize("how", ["offline", "out_of_reach"])
def test_a_branch_in_the_cache_needs_no_hub(how, request):
    _, branch, _, _ = request.getfixturevalue(how)
    assert branch == {"test": 200, "exemplars": 10}


def test_what_is_not_in_the_cache_needs_the_hub(offline, out_of_reach):
    *_, forbidden = offline
    assert "milic_eval (pkupie/milic-eval) is not in the cache" in forbidden
    assert "HF_HUB_OFFLINE forbids" in forbidden and "unset HF_HUB_OFFLINE" in forbidden
    *_, lost = out_of_reach
    assert "milic_eval (pkupie/milic-eval): the Hub cannot be reached" in lost
    assert "vocabulary/bo/test.json" in lost and "check the network" in lost
    for message in (forbidden, lost):
        assert "data_dir" in message and "TRIMIX_DATA_DIR" in message


# ---------------------------------------------------------------- the command line


def test_lm_eval_prints_the_message_and_no_traceback(tmp_path):
    metadata = json.dumps({"data_dir": str(tmp_path / "gone")})
    tasks = ["--tasks", "trimix_milic_bo_math"]
    ran = program("-m", "lm_eval", "--model", "dummy", *tasks, "--metadata", metadata)
    assert ran.returncode != 0
    assert "Traceback" not in ran.stdout + ran.stderr
    (error,) = [said for said in ran.stderr.splitlines() if said.startswith("error: ")]
    assert error == f"error: milic_eval: there is no folder or zip file {tmp_path / 'gone'}."
    assert "\n  -> correct data_dir in --metadata" in ran.stderr
