"""What `trimix cpt` reads: broken, empty, huge and doubled text is survived, counted and shown."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import tracemalloc

import pytest
from datasets import Dataset

from trimix_lm_eval.training.cpt import holdout, scripts, texts
from trimix_lm_eval.training.cpt.cleaning import DOCUMENT, Cleaner
from trimix_lm_eval.training.cpt.lines import LONGEST, Line, of_rows, of_text, split
from trimix_lm_eval.training.cpt.texts import TextPlace
from trimix_lm_eval.utils.errors import TrimixError

UYGHUR = "ئۇيغۇر تىلى ناھايىتى گۈزەل"


def lines(data: bytes, **more):
    return list(of_text(io.BytesIO(data), **more))


def cleaned(tmp_path, *files, language="uig_Arab", **more):
    """(documents, account, dropped lines) of files given as names and bytes."""
    options = {"deduplicate": True, "nfc": False, **more}
    for name, data in files:
        (tmp_path / name).write_bytes(data)
    places = tuple(TextPlace(str(tmp_path / name)) for name, _ in files)
    out = io.StringIO()
    cleaner = Cleaner(out, language, **options)
    found = texts.sources(places, "text", "text")
    documents = [document.text for source in found for document in cleaner.documents(source)]
    return documents, cleaner.account, [json.loads(row) for row in out.getvalue().splitlines()]


# ---------------------------------------------------------------- lines


def test_lines_are_numbered_and_have_no_ends():
    found = lines(b"\xef\xbb\xbfone\r\ntwo\n\nfour\rfive")
    assert [(line.number, line.data) for line in found] == [
        (1, b"one"),
        (2, b"two"),
        (3, b""),
        (4, b"four"),
        (4, b"five"),
    ]
    assert lines(b"") == lines(b"\xef\xbb\xbf") == []


def test_long_lines_are_cut_at_breaks_and_nothing_is_lost():
    text = (UYGHUR + "، ") * 40
    found = lines(text.encode() + b"\nnext", longest=64)
    assert all(len(line.data) <= 64 for line in found)
    assert b"".join(line.data for line in found) == text.encode() + b"next"
    for line in found[:-2]:
        assert line.data.decode().endswith(("،", " ")), "cut between words"
    assert [line.number for line in found][-2:] == [1, 2]


def test_a_long_first_line_is_cut_at_a_break_behind_the_mark_of_byte_order():
    text = (UYGHUR + "، ").encode() * 40
    assert lines(b"\xef\xbb\xbf" + text, longest=64) == lines(text, longest=64)


def test_lines_that_end_as_on_old_macs_stay_lines_in_a_long_file():
    found = lines(b"one two\r" * 40, longest=64)
    assert b"".join(line.data for line in found) == b"one two" * 40
    assert not any(b"\r" in line.data for line in found)


def test_empty_rows_are_counted(tmp_path):
    documents, account, _ = cleaned(tmp_path, ("a.jsonl", b'{"text": "a"}\n{"text": ""}\n\n'))
    assert documents == ["a"] and account.lines == 3 and account.dropped == {"empty": 2}


def test_a_line_without_a_break_is_passed_over():
    found = lines(b"A" * 1000 + b" after\nnext\n", longest=64)
    assert [(line.number, line.fault, line.size) for line in found] == [
        (1, "no break", 1006),
        (2, "", 0),
    ]


@pytest.mark.parametrize("filling", ["base64", "words"])
def test_a_line_of_100_mb_takes_little_memory(tmp_path, filling):
    word = b"QUJD/" if filling == "base64" else "سۆز ".encode()
    file = tmp_path / "huge.txt"
    with file.open("wb") as stream:
        for _ in range(100):
            stream.write(word * (LONGEST // len(word)))
        stream.write(b"\nafter\n")
    kept = total = 0
    tracemalloc.start()
    with file.open("rb") as stream:
        for line in of_text(stream):
            kept += len(line.data)
            total += line.size or len(line.data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == file.stat().st_size - 2
    assert peak < 30 * LONGEST
    assert (kept > 90 * LONGEST) == (filling == "words")


def test_rows_of_jsonl_and_what_is_none():
    rows = [
        json.dumps({"text": "one\ntwo"}).encode(),
        b"not json",
        b'{"other": "x"}',
        b'["text"]',
        b"\xff{}",
        b"",
        json.dumps({"text": "last"}).encode(),
    ]
    found = list(of_rows(io.BytesIO(b"\n".join(rows)), "text"))
    assert [(x.number, x.data, x.begins) for x in found if not x.fault and x.data.isalpha()] == [
        (1, b"one", True),
        (1, b"two", False),
        (7, b"last", True),
    ]
    assert [(x.number, x.fault) for x in found if x.fault] == [
        (2, "not JSON"),
        (3, "no text in text"),
        (4, "no text in text"),
    ]
    (huge,) = of_rows(io.BytesIO(b'{"text": "' + b"x" * 500 + b'"}'), "text", longest=100)
    assert huge.fault == "a row of more than 100 bytes" and huge.size == 512


def test_half_a_surrogate_pair_is_broken_utf8(tmp_path):
    _, account, dropped = cleaned(tmp_path, ("a.jsonl", b'{"text": "x\\ud800"}\n{"text": "y"}'))
    assert account.dropped == {"broken UTF-8": 1} and account.kept == 1
    assert dropped[0]["line"] == 1


# ---------------------------------------------------------------- cleaning


def test_every_line_is_kept_or_counted_with_its_reason(tmp_path):
    good = [f"{UYGHUR} {i}" for i in range(5)]
    bad = {
        "broken UTF-8": b"abc \xff\xfe def",
        "replacement character": "abc \ufffd".encode(),
        "control character": b"a\x00b",
        "no break": b"x" * 1500,
        "empty": b" \t ",
        "duplicate": f" {good[0]}".encode(),
    }
    data = b"\n".join([*(line.encode() for line in good), *bad.values()])
    documents, account, dropped = cleaned(tmp_path, ("a.txt", data))
    assert documents == ["\n".join(good)]
    assert account.dropped == dict.fromkeys(bad, 1)
    assert account.lines == account.kept + sum(account.dropped.values()) == len(good) + len(bad)
    assert sum(account.dropped_bytes.values()) == sum(map(len, bad.values()))
    by_reason = {row["reason"]: row for row in dropped}
    assert set(by_reason) == set(bad) - {"empty"}
    assert by_reason["broken UTF-8"]["text"] == "abc \\xff\\xfe def"
    assert by_reason["control character"]["line"] == 8
    assert by_reason["no break"]["text"].endswith("x…") and by_reason["no break"]["bytes"] == 1500


def test_tabs_joiners_and_marks_are_text(tmp_path):
    words = ["tab\there", "می\u200cخواهم", "क्\u200dष", "བོད་སྐད་" * 400, "ไทย" * 300]
    documents, account, _ = cleaned(tmp_path, ("a.txt", "\n".join(words).encode()))
    assert "\n".join(documents) == "\n".join(words) and not account.dropped


def test_copies_and_empty_files_are_reported(tmp_path):
    data = f"{UYGHUR}\n".encode()
    files = [("a.txt", data), ("b.txt", data), ("empty.txt", b""), ("blank.txt", b"\n\n")]
    _, account, _ = cleaned(tmp_path, *files)
    assert account.kept == 1 and account.dropped == {"empty": 2}
    known = {entry["name"].rpartition("/")[2]: entry for entry in account.files}
    assert known["b.txt"]["copy of"] == known["a.txt"]["name"]
    assert known["empty.txt"]["lines"] == 0 and known["a.txt"]["lines"] == 1
    assert len(known["a.txt"]["sha256"]) == 64


def test_utf16_is_dropped_line_by_line(tmp_path):
    documents, account, _ = cleaned(tmp_path, ("a.txt", f"{UYGHUR}\n{UYGHUR}".encode("utf-16")))
    assert not documents and account.kept == 0 and sum(account.dropped.values()) == account.lines


def test_mixed_scripts_are_counted_and_kept(tmp_path):
    text = f"{UYGHUR}\nplain Latin\n{UYGHUR} and Latin\n123 !\n"
    documents, account, _ = cleaned(tmp_path, ("a.txt", text.encode()))
    assert documents == [text.strip()]
    assert account.other_script == 1 and account.mixed == 1
    shares = account.plain()["scripts"]
    assert list(shares) == ["Arabic", "Latin"] and sum(shares.values()) == pytest.approx(1)


def test_scripts_of_codes():
    assert scripts.expected("swh_Latn") == ("Latn",)
    assert scripts.expected("jpn_Jpan") == ("Hani", "Hira", "Kana")
    assert scripts.expected("eo") == scripts.expected("qaa_Qaaa") == ()
    found = scripts.histogram(dict.fromkeys("aЖञབ漢ߒⴰ𐀀5 ،́", 1))
    assert found == dict.fromkeys(
        ("Latn", "Cyrl", "Deva", "Tibt", "Hani", "Nkoo", "Tfng", "other"), 1
    )


def test_nfc_changes_nothing_unasked(tmp_path):
    text = "cafe\u0301 and cafe\u0301"
    documents, account, _ = cleaned(tmp_path, ("a.txt", text.encode()))
    assert documents == [text] and account.not_nfc == 1
    documents, account, _ = cleaned(tmp_path, ("a.txt", text.encode()), nfc=True)
    assert documents == ["café and café"] and account.not_nfc == 1


def test_lines_are_gathered_to_documents_and_rows_are_documents(tmp_path):
    line = "word " * 60
    rows = "\n".join(json.dumps({"text": f"{line}{i}\nand {i}"}) for i in range(3))
    documents, account, _ = cleaned(tmp_path, ("a.jsonl", rows.encode()))
    assert documents == [f"{line}{i}\nand {i}" for i in range(3)] and account.documents == 3
    text = "\n".join(f"{line}{i}" for i in range(9))
    documents, account, _ = cleaned(tmp_path, ("a.txt", text.encode()))
    assert "\n".join(documents) == text and account.characters == len(text) - account.documents + 1
    assert all(DOCUMENT <= len(one) < 2 * DOCUMENT for one in documents[:-1])


# ---------------------------------------------------------------- places


def test_folders_patterns_and_packed_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "sub" / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}'))
    (tmp_path / "c.pdf").write_text("no text")
    Dataset.from_dict({"text": ["three\nfour", None]}).to_parquet(str(tmp_path / "d.parquet"))
    found = texts.sources((TextPlace(str(tmp_path)),), "text", "text")
    read = [line.data for source in found for line in source.lines() if not line.fault]
    assert sorted(read) == [b"four", b"one", b"three", b"two"]
    assert [x.fault for s in found for x in s.lines() if x.fault] == ["no text in text"]
    pattern = texts.sources((TextPlace(str(tmp_path / "*.txt")),), "text", "text")
    assert [source.path for source in pattern] == [tmp_path / "a.txt"]


def test_places_that_have_nothing(tmp_path):
    with pytest.raises(TrimixError, match="there is no file .*nowhere"):
        texts.sources((TextPlace(str(tmp_path / "nowhere.txt")),), "text", "text")
    Dataset.from_dict({"content": ["x"]}).to_parquet(str(tmp_path / "d.parquet"))
    (source,) = texts.sources((TextPlace(str(tmp_path / "d.parquet")),), "text", "text")
    with pytest.raises(TrimixError, match="no column 'text'; there are content"):
        list(source.lines())


def test_what_is_made_from_text_is_no_part_of_it(tmp_path):
    made = tmp_path / "out"
    made.mkdir()
    for file in (tmp_path / "a.txt", made / "held_out.txt"):
        file.write_text("one")
    for where in (str(tmp_path), f"{tmp_path}/**/*.txt"):
        found = texts.sources((TextPlace(where),), "text", "text", [made])
        assert [source.path for source in found] == [tmp_path / "a.txt"]
    (named,) = texts.sources((TextPlace(str(made / "held_out.txt")),), "text", "text", [made])
    assert named.path == made / "held_out.txt", "asked for by its name"


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one")

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(texts, "sha256", refused)
    with pytest.raises(TrimixError, match="text: .*a.txt cannot be read: Permission denied"):
        texts.sources((TextPlace(str(tmp_path / "a.txt")),), "text", "text")


def test_damaged_files_are_named(tmp_path):
    Dataset.from_dict({"text": ["x" * 99] * 99}).to_parquet(str(tmp_path / "d.parquet"))
    data = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"x" * 10_000)[:-20])
    for name in ("d.parquet", "e.txt.gz"):
        (source,) = texts.sources((TextPlace(str(tmp_path / name)),), "text", "text")
        with pytest.raises(TrimixError, match=f"{name} cannot be read"):
            list(source.lines())


@pytest.mark.parametrize("module", [gzip, lzma])
def test_packed_files_that_are_damaged_inside_are_named(tmp_path, module):
    data = bytearray(module.compress("".join(map(chr, range(40, 9000))).encode()))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
    file = tmp_path / f"a.txt.{'gz' if module is gzip else 'xz'}"
    file.write_bytes(data)
    (source,) = texts.sources((TextPlace(str(file)),), "text", "text")
    with pytest.raises(TrimixError, match="cannot be read"):
        list(source.lines())


def test_devices_and_pipes_are_no_text(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    for where in ("/dev/zero", str(tmp_path / "a.txt")):
        with pytest.raises(TrimixError, match="is no regular file"):
            texts.sources((TextPlace(where),), "text", "text")


def test_links_in_a_circle_are_no_text(tmp_path):
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    for where in (tmp_path, tmp_path / "*.txt", tmp_path / "loop.txt"):
        with pytest.raises(TrimixError, match="loop.txt is no regular file"):
            texts.sources((TextPlace(str(where)),), "text", "text")
    (tmp_path / "a.txt").write_text("one")
    (source,) = texts.sources((TextPlace(str(tmp_path)),), "text", "text")
    assert source.path == tmp_path / "a.txt"


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    listed = os.scandir

    def refused(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(TrimixError, match="text: .*sub cannot be read: Permission denied"):
        texts.sources((TextPlace(str(tmp_path)),), "text", "text")


def test_names_of_files_may_be_any_bytes(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff\n.txt", "w") as stream:
        stream.write("one")
    (source,) = texts.sources((TextPlace(str(tmp_path)),), "text", "text")
    assert source.name == f"{tmp_path}/\\udcff\\n.txt"
    assert [line.data for line in source.lines()] == [b"one"]


# ---------------------------------------------------------------- held-out text


def test_the_seed_chooses_documents_whatever_their_order():
    documents = [f"document {i}" for i in range(100)]

    def chosen(order, seed=1):
        drawn = holdout.Drawn(seed)
        for one in order:
            drawn.add(one)
        return drawn.chosen(0.1, least=3)

    first = chosen(documents)
    assert len(first) == 10 and all(documents[place] == text for place, text in first.items())
    assert set(chosen(documents[::-1]).values()) == set(first.values())
    assert set(chosen(documents, seed=2).values()) != set(first.values())
    assert len(chosen(documents[:8])) == 2, "at most a quarter"
    with pytest.raises(TrimixError, match="3 documents: too few"):
        chosen(documents[:3])


def test_lines_near_held_out_text():
    held = "The quick brown fox jumps over the lazy dog and runs away from the hunters."
    guard = holdout.Decontaminator([f"{held}\nShort."])
    assert guard.hits(held) and guard.hits("SHORT")
    assert guard.hits(f"He said: {held.upper().replace(' ', '  ')} Yes, he did say all of this.")
    assert not guard.hits("The quick brown fox jumps over the fence.")
    assert holdout.Decontaminator(["Cafe\u0301 ole\u0301"]).hits("Caf\u00e9 ol\u00e9"), (
        "one text, normalised"
    )
    assert not guard.hits("short of that") and not guard.hits("...")


def test_held_out_files_are_read_as_they_are(tmp_path):
    (tmp_path / "h.jsonl").write_text('{"text": "a\\n\\nb"}\n{"text": "a\\n\\nb"}\n')
    assert holdout.read(tmp_path / "h.jsonl", "text") == ["a\n\nb"] * 2
    (tmp_path / "h.txt").write_bytes(b"good\nb\xff\n")
    with pytest.raises(TrimixError, match="line 2: bytes that are not UTF-8"):
        holdout.read(tmp_path / "h.txt", "text")
    with pytest.raises(TrimixError, match="stands for 2 files"):
        holdout.read(tmp_path, "text")
    (tmp_path / "h.txt").write_bytes(b"\n")
    with pytest.raises(TrimixError, match="no text in it"):
        holdout.read(tmp_path / "h.txt", "text")


def test_rows_of_a_table_are_cut_like_text():
    assert [line.begins for line in split("a\nb", 3)] == [True, False]
    assert list(split("", 3)) == [Line(3, b"", begins=True)]
