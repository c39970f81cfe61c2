"""What the miniature's models read, what they are asked, and that the two share nothing."""

from __future__ import annotations

import random
import re

import pytest

pytestmark = pytest.mark.slow


def test_what_is_held_out_is_read_by_nobody(corpora):
    for name, corpus in corpora.items():
        assert len(corpus.topics["test"]) == 404 and len(corpus.topics["dev"]) == 100
        held_out = [*corpus.dev, *corpus.test, *(one.text for one in corpus.topics["test"])]
        for read in (*corpus.base, *corpus.cpt):
            for text in held_out:
                assert read not in text and text not in read, name


def test_what_quotes_held_out_text_is_dropped():
    import texts

    rng = random.Random(8)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def text(size: int) -> str:
        return "".join(rng.choice(letters) for _ in range(size))

    held_out = [text(300), text(25), "ཀ་ཁ་ག " * 20]
    for start in range(0, 241):  # wherever the quotation begins, and in other spacing
        quoted = held_out[0][start : start + 60]
        spaced = " ".join(quoted[i : i + 7] for i in range(0, 60, 7))
        clean = text(200)
        document = f"{text(37)} {spaced} {text(41)}"
        assert texts.without_overlap([clean, document], held_out) == [clean]
    assert texts.without_overlap([held_out[1]], held_out) == []
    assert texts.without_overlap([held_out[2].replace("་", "")], held_out) == []
    kept = f"{text(50)}{held_out[0][:30]}{text(50)}"
    assert texts.without_overlap([kept], held_out) == [kept], "thirty letters are no quotation"


MARK = "Ω"  # on every word of development text; MARK + MARK on those of test text


def marked(corpora):
    """The same corpora, with marks on whatever nobody may be trained on."""

    def words(text: str, mark: str) -> str:
        return re.sub(r"(\w+)", rf"\1{mark}", text)

    found = {}
    for name, corpus in corpora.items():
        topics = {
            part: [row._replace(text=words(row.text, mark)) for row in corpus.topics[part]]
            for part, mark in (("train", ""), ("dev", MARK), ("test", 2 * MARK))
        }
        dev, test = (
            [words(text, mark) for text in some]
            for some, mark in ((corpus.dev, MARK), (corpus.test, 2 * MARK))
        )
        found[name] = corpus._replace(dev=dev, test=test, topics=topics)
    return found


def test_nothing_that_is_read_is_made_of_held_out_text(corpora, words, tmp_path, monkeypatch):
    import judge
    import models
    import recipe

    read = []
    monkeypatch.setattr(models, "Running", lambda _, texts: read.extend(texts))
    monkeypatch.setattr(models, "Documents", lambda _, made: read.extend("".join(x) for x in made))
    monkeypatch.setattr(models, "Repeats", lambda running, _: len(running))  # what was read above
    some = recipe.SMOKE._replace(documents=400)
    made = models.streams(some, marked(corpora), words, 3)
    assert len(made) == 6 and len(read) > 800
    assert not [text for text in read if MARK in text]
    judge.write_texts(some, marked(corpora), tmp_path)
    files = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert len(files) == 9
    for name, text in files.items():
        held_out = name in {f"{language}_dev.txt" for language in corpora}
        assert (MARK in text) == held_out and 2 * MARK not in text, name


def test_exemplars_are_never_of_the_part_that_is_judged(corpora, tmp_path):
    import judge
    import recipe

    judge.write_items(recipe.SMOKE, marked(corpora), "test", tmp_path)
    files = list(tmp_path.glob("*/*.jsonl"))
    assert len(files) == 3 * 15
    for path in files:
        exemplar = path.stem.endswith("_exemplars")
        for row in path.read_text(encoding="utf-8").splitlines():
            assert MARK in row and (2 * MARK not in row) == exemplar, path


def test_quotations_of_held_out_text_do_not_come_through(folder, tmp_path):
    import shutil

    import texts

    shutil.copytree(folder, tmp_path / "texts")
    place = tmp_path / "texts"
    clean = texts.load(folder)

    planted = set()

    def plant(name: str, quoted: str, at: int, line: str = "{}") -> None:
        lines = (place / name).read_text(encoding="utf-8").split("\n")
        lines[at] = line.format(quoted)
        (place / name).write_text("\n".join(lines), encoding="utf-8")
        planted.add(quoted)

    verses = [line for text in clean["en"].test for line in text.split("\n")]
    treebank = (place / "ug_udt_test.txt").read_text(encoding="utf-8").split("\n")
    plant("kjv.txt", max(verses, key=len), 7)
    plant("bo_nanhai.txt", clean["bo"].test[3], 4, "ཀ ཀ {}")  # of each fourth the bases read
    plant("ug_udt_train.txt", max(treebank, key=len), 9)
    for code, name in (("eng_Latn", "en"), ("uig_Arab", "ug")):
        sentences = [row.text for row in clean[name].topics["test"]]
        plant(f"sib200/{code}/train.tsv", max(sentences, key=len), 3, "2\tsports\t{}")
    assert len(planted) == 5 and min(map(len, planted)) > 50
    for name, corpus in texts.load(place).items():
        for document in (*corpus.base, *corpus.cpt):
            assert not [text for text in planted if text in document], name


def test_no_words_of_a_test_s_wording_are_a_training_one_s():
    """No piece between two fields, so no shared wording can hide in a prompt that is filled in."""
    import wording

    def pieces(one: wording.Wording) -> set[str]:
        found = re.split(r"\{\w+\}", f"{one.question}{one.answer}")
        return {" ".join(re.findall(r"[a-z]+", piece.lower())) for piece in found} - {""}

    read = {piece for some in wording.TRAINING.values() for one in some for piece in pieces(one)}
    tested = set().union(*map(pieces, wording.TEST.values()))
    assert {"translate", "once more", "word list"} <= tested and {"headline", "again"} <= read
    shared = {(a, b) for a in tested for b in read if f" {a} " in f" {b} "}
    assert not shared


def test_no_eight_tokens_of_a_test_s_wording_are_read(corpora, words):
    import curriculum
    import wording

    rng = random.Random(3)
    documents = curriculum.tasks(corpora["en"], 600, rng)
    documents += curriculum.nonsense(list(corpora.values()), 600, rng)
    documents += [[text] for text in curriculum.again(list(corpora.values()), 60, rng)]
    documents += [[text] for text in curriculum.lists(corpora["bo"], corpora["en"], rng)]

    def grams(text: str) -> set[tuple[int, ...]]:
        ids = words(text, verbose=False)["input_ids"]
        return {tuple(ids[i : i + 8]) for i in range(len(ids) - 7)}

    read = set().union(*(grams("".join(parts)) for parts in documents))
    fields = dict.fromkeys(("passage", "cue", "gloss", "is_"), "")
    tested = set().union(*(grams(one.question.format(**fields)) for one in wording.TEST.values()))
    assert len(tested) > 20 and not tested & read
    known = grams("\nWhat did Ruth say?\nRuth:")
    assert known & read, "the check finds what is read"


def test_what_stands_behind_an_entry_is_one_token(words):
    import wording

    for sign in set(wording._IS):
        (behind,) = words(f"x{sign}", verbose=False)["input_ids"][1:]
        assert words.decode([behind]) == sign


def test_a_language_s_text_quotes_itself_and_has_lists(corpora):
    import curriculum

    documents = [" ".join(f"w{i}x{j}" for j in range(400)) for i in range(60)]
    made = curriculum.quoting(documents, random.Random(4))
    assert len(made) == 60
    changed = [(one, other) for one, other in zip(documents, made, strict=True) if one != other]
    assert 20 < len(changed) < 40
    for one, other in changed:
        words = one.split()
        assert [w for i, w in enumerate(other.split()) if w not in other.split()[:i]] == words
        assert 1.05 < len(other.split()) / len(words) < 1.5
    listed = curriculum.lists(corpora["bo"], corpora["en"], random.Random(4))
    size = sum(len(text.encode()) for text in corpora["bo"].cpt)
    assert 0.08 < sum(len(text.encode()) for text in listed) / size < 0.12
    english = set(" ".join(corpora["en"].base).replace(".", " ").split())
    for text in listed:
        lines = text.split("\n")
        assert len(lines) > len(set(lines)), "entries come again"
        for line in lines:
            one, other = line.split(": ")
            assert (one in english) != (other in english)


def test_runs_are_not_used_twice_and_words_are_words():
    from problems import Text

    known = "abab cdcd efef ghgh ijij klkl mnmn opop qrqr stst uvuv wxwx"
    text = Text([known, known, "a ། . x"], random.Random(1))
    runs = [tuple(text.run(4)) for _ in range(4)]
    assert all(runs.count(run) <= 2 for run in runs), "each of the two documents has it once"
    assert {text.word() for _ in range(300)} == set(known.split(" "))
    pairs = zip(known.split(), known.split()[1:], strict=False)
    assert {text.phrase() for _ in range(40)} <= set(map(" ".join, pairs))


@pytest.mark.parametrize("kind", ["follow", "say", "who", "gloss_to", "gloss_from", "finish"])
def test_problems_can_be_solved_by_reading(corpora, kind):
    import problems
    import wording

    rng = random.Random(2)
    text, english = (problems.Text(corpora[name].dev, rng) for name in ("bo", "en"))
    for _ in range(50):
        problem = problems.MAKERS[kind](text, english)
        choices = problem["choices"]
        assert choices[problem["label"]] == problem["answer"]
        assert len(set(choices)) == len(choices) == (5 if kind.startswith("gloss") else 4)
        prompt, answer = wording.worded(wording.TEST[kind], problem)
        assert answer == f" {problem['answer']}" and "{" not in prompt
        if kind != "finish":
            assert problem["answer"] in prompt
        if "cue" in problem:
            assert prompt.rstrip(": ").endswith(problem["cue"])
