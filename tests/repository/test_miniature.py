"""The small world in which the paper's claims are measured: its texts, problems, models, steps."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from tests.support.examples import importable, sentences
from tests.support.running import ROOT

pytestmark = pytest.mark.slow

HERE = ROOT / "examples" / "miniature"


@pytest.fixture(scope="module", autouse=True)
def modules():
    with importable(HERE):
        yield


# ---------------------------------------------------------------------------- made-up texts


def write_texts(folder: Path) -> Path:
    rng = random.Random(0)

    def write(name: str, lines: list[str]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    write("kjv.txt", [f"{line}." for line in sentences("en", 3000, 9, rng)])
    clauses = sentences("bo", 220 * 20, 7, rng)
    write("bo_nanhai.txt", [" ། ".join(clauses[i : i + 20]) for i in range(0, len(clauses), 20)])
    write("ug_udt_train.txt", [f"{line}." for line in sentences("ug", 400, 9, rng)])
    write("ug_udt_test.txt", [f"{line}." for line in sentences("ug", 300, 9, rng)])
    codes = {"en": "eng_Latn", "bo": "bod_Tibt", "ug": "uig_Arab"}
    for language, code in codes.items():
        lines = sentences(language, 1004, 9, rng)
        topics = [f"{i}\t{('sports', 'travel')[i % 2]}\t{line}." for i, line in enumerate(lines)]
        for part, some in (
            ("train", topics[:701]),
            ("dev", topics[701:800]),
            ("test", topics[800:]),
        ):
            write(f"sib200/{code}/{part}.tsv", ["index_id\tcategory\ttext", *some])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def corpora(folder):
    import texts

    return texts.load(folder)


@pytest.fixture(scope="module")
def words(corpora):
    import curriculum
    import tokenizer

    documents = curriculum.tasks(corpora["en"], 1500, random.Random(9))
    return tokenizer.train(corpora, documents, 700)


def test_what_stands_behind_an_entry_is_one_token(words):
    import wording

    for sign in set(wording._IS):
        (behind,) = words(f"x{sign}", verbose=False)["input_ids"][1:]
        assert words.decode([behind]) == sign


# ---------------------------------------------------------------------------- the whole


def test_every_step_up_to_the_sweep_at_toy_size(folder, tmp_path):
    import plan
    import recipe
    import steps

    planned = plan.steps(recipe.SMOKE, folder, tmp_path, [0], "dev")
    results = ["seed0/results_dev_large", "seed0/results_dev_medium"]
    last = [*results, "probe_dev", "report_dev", "claims_dev"]
    assert [step.name for step in planned[-5:]] == last
    steps.run([*planned[:-5], planned[-3]], tmp_path)
    probe = (tmp_path / "probe_dev/probe.md").read_text().splitlines()
    assert len(probe) == 7 and {line.count("|") for line in probe} == {6}
    sizes = [f"{size}_{kind}" for size in ("medium", "large") for kind in ("base", "ins")]
    for role in ("small_base", *sizes, "small_cpt_bo", "small_cpt_ug"):
        assert (tmp_path / "seed0" / role / "model.safetensors").exists()
        assert not (tmp_path / "seed0" / role / "training.pt").exists()
    items = tmp_path / "items_dev"
    tasks = {path.stem for path in (items / "tasks").glob("mini_*.yaml")}
    # Seven kinds chosen, five of them written, running text, and a group of all.
    assert len(tasks) == 3 * 14
    rows = [json.loads(line) for line in (items / "bo/follow.jsonl").open(encoding="utf-8")]
    assert len(rows) == 2 and all(row["choices"][row["label"]] == row["answer"] for row in rows)
    first, second = passes((tmp_path / "texts/ug_cpt.txt").read_text(encoding="utf-8"))
    assert [len(set(document.split())) for document in first] == [
        len(set(document.split())) for document in second
    ], "the same words"
    assert first != second, "but other quotations"
    dropped = (tmp_path / "seed0/small_cpt_bo/cpt/data/dropped.jsonl").read_text(encoding="utf-8")
    assert "duplicate" not in dropped, "what a task asks for stands in its text already"
    check_the_demo(planned, tmp_path)


def passes(text: str) -> tuple[list[str], list[str]]:
    """The documents of both passes over a text."""
    documents = text.splitlines()
    half = len(documents) // 2
    assert len(documents) == 2 * half > 20
    return documents[:half], documents[half:]


def test_the_readme_has_the_claims_of_the_page():
    readme, page = (
        (HERE / name).read_text(encoding="utf-8") for name in ("README.md", "claims.md")
    )
    table = readme.split("## What came of it")[1].split("![")[0]
    cells = [cell.strip() for line in table.splitlines()[8:] for cell in line.split("|")[2:-1]]
    assert len(cells) == 16
    summary = page.split("## ")[0]
    for cell in cells:
        assert f"| {cell} |" in summary, cell


def test_steps_are_done_once_and_never_taken_for_another_recipe_s(tmp_path):
    import steps

    done = []

    def step(name, recipe, *needs, **how):
        def make(folder):
            done.append((name, sorted(path.name for path in folder.iterdir())))
            (folder / "half").touch()
            if recipe == {"killed": True}:
                raise KeyboardInterrupt

        return steps.Step(name, needs, recipe, make, **how)

    first = [step("a", {"n": 1}), step("b", {"n": 1}, "a"), step("c", {}, "b", summary=True)]
    steps.run(first, tmp_path)
    steps.run(first, tmp_path)
    assert [name for name, _ in done] == ["a", "b", "c"]
    more = [*first[:2], step("d", {}, "a"), step("c", {}, "b", "d", summary=True)]
    steps.run(more, tmp_path)
    assert done[3:] == [("d", []), ("c", [])], "what is summed up has changed"
    other = [first[0], step("b", {"n": 2}, "a"), step("e", {}, "a"), step("f", {}, "b")]
    with pytest.raises(SystemExit, match=r"b was made by another recipe \(n is 2, was 1\)"):
        steps.run(other, tmp_path)
    steps.run(other, tmp_path, "e")
    with pytest.raises(SystemExit, match="b was made by another recipe"):
        steps.run(other, tmp_path, "f")

    with pytest.raises(KeyboardInterrupt):
        steps.run([step("g", {"killed": True}, resumes=True)], tmp_path)
    with pytest.raises(SystemExit, match="g was made by another recipe"):
        steps.run([step("g", {"killed": False}, resumes=True)], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        steps.run([step("g", {"killed": True}, resumes=True)], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        steps.run([step("h", {"killed": True})], tmp_path)
    steps.run([step("h", {"killed": False})], tmp_path)
    assert done[-4:] == [("g", []), ("g", ["half"]), ("h", []), ("h", [])]
    assert set(steps.seconds(tmp_path)) == {"a", "b", "c", "d", "e", "h"}


@pytest.mark.parametrize("other", ["--smoke", "--dev", "--only=texts"])
def test_a_toy_is_never_installed(other, monkeypatch, capsys):
    import run

    monkeypatch.setattr("sys.argv", ["run.py", "--texts", "texts", "--demo", other])
    with pytest.raises(SystemExit):
        run.main()
    assert "leave out --smoke, --dev and --only" in capsys.readouterr().err


def check_the_demo(planned, out):
    """What a trio is made of, and where it goes."""
    import demo

    names = [step.name for step in demo.needed(planned, 0)]
    assert names == [
        *("texts", "tokenizer", "seed0/small_base", "seed0/large_base", "seed0/large_ins"),
        "seed0/small_cpt_bo",
    ], "and the test items, which are none of these steps' needs"
    checkout = out / "checkout"
    place = checkout / "trimix_lm_eval/loading/demo"
    data = checkout / "tasks/demo/data"
    for folder in (place / "large_ins", data):
        folder.mkdir(parents=True)
        (folder / "old.jsonl").write_text("{}")
    demo.install(out / "seed0", out / "items_dev", checkout)
    names = {"config.json", "generation_config.json", "model.safetensors"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (place / "large_ins").iterdir()} == {
        *names,
        "chat_template.jinja",
    }
    for role in ("small_base", "small_cpt"):
        assert {path.name for path in (place / role).iterdir()} == names
    cpt = (out / "seed0/small_cpt_bo/model.safetensors").read_bytes()
    assert (place / "small_cpt/model.safetensors").read_bytes() == cpt
    asked = {f"{kind}{end}" for kind in demo.KINDS for end in ("", "_exemplars")}
    assert {path.stem for path in data.iterdir()} == asked - {"rolling_exemplars"}


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


def test_claims_are_told_from_results(tmp_path):
    import claims
    import claims_page
    import numpy as np

    rng = random.Random(5)
    points = [f"{a:g}:{b:g}" for a, b in claims.GRID if (a, b) != (1, 1)]
    chance = dict.fromkeys([*points, "large_ins", "small_cpt", "small_base", "gate"], 0.4)
    chance |= {"proxy_tuning": 0.3, "0.5:0": 0.4, "0.3:0": 0.4, "0.7:0": 0.4, "0.1:0.9": 0.9}
    chance["ppl"] = 0.7
    for seed in (0, 1):
        for name, right in chance.items():
            write_results(tmp_path / f"seed{seed}/results_test_large/{name}", name, right, rng)
        for name in ("large_ins", "small_base"):
            place = tmp_path / f"seed{seed}/results_test_large/en/{name}"
            write_results(place, name, 0.9, rng, language="en")
        (tmp_path / f"seed{seed}/results_test_large/step.json").touch()
    (tmp_path / "seed2/results_test_large/ppl").mkdir(parents=True)  # is being made
    read_in = claims.read_all(tmp_path, "test", ("large", "medium"))
    assert list(read_in["large"]) == ["seed0", "seed1"]
    echo = dict.fromkeys(claims.AVERAGED, {"end": 1.0, "beginning": 2.5})
    text = claims_page.page(read_in, {"bo": "Tibetan"}, {"bo": echo, "en": echo})
    assert "## Tibetan, large: 2 seeds" in text and "two sizes" not in text
    assert text.count("| no model |" + " 2.5 |" * 6 + " – | 2.5 |") == 2
    english = text.split("## English, large, models alone")[1]
    assert "| large_ins |" in english and "0.5:0 |" not in english
    seeds = [claims.read(tmp_path / f"seed{i}/results_test_large")[0] for i in (0, 1)]
    found = claims.verdicts(seeds, "bo")
    assert found["TriMix above Proxy Tuning"]["mean"].verdict == "holds"
    assert found["the gate above TriMix"]["mean"].verdict == "fails"
    assert found["small_cpt above large_ins"]["follow"].verdict == "cannot be told"
    assert found["the upper bound above TriMix"]["say"].mean == pytest.approx(20, abs=9)
    assert claims_page.best_points(seeds, "bo", "say") == "0.1:0.9, 0.1:0.9"
    assert claims_page.best_points(seeds, "bo", "rolling") == "0.1:0.1 (+35), 0.1:0.1 (+35)"
    assert found["the upper bound above TriMix"]["say"].verdict == "measured"
    assert "| β > α, β ≥ 0.9, % of samples | 75, 75" in text
    import pictures

    assert claims_page.panels(read_in, {"bo": "Tibetan"}) == {"Tibetan, large": found}
    mean = found["TriMix above Proxy Tuning"]["mean"]
    assert f"| **{mean.mean:+.1f}** ({mean.low:+.1f} to {mean.high:+.1f}) |" in text
    pictures.draw({"Tibetan": found, "again": found}, tmp_path / "claims.png")
    assert (tmp_path / "claims.png").stat().st_size > 10_000
    ((scores, shares),) = claims_page.grids(read_in, {"bo": "Tibetan"}).values()
    assert shares[0, 4] == pytest.approx(0.75) and shares[2, 1] == pytest.approx(0.25)
    assert np.unravel_index(scores.argmax(), scores.shape) == (0, 4) and scores.max() > 80
    pictures.draw_grids({"Tibetan": (scores, shares)}, tmp_path / "grids.png")
    assert (tmp_path / "grids.png").stat().st_size > 8_000
    naive = [100 * sum(seed["bo", "say"]["ppl"] > 0) / 200 for seed in seeds]
    assert [float(seed["bo", "say"]["ppl"].mean()) for seed in seeds] == pytest.approx(naive)


def write_results(folder, name, right, rng, language="bo"):
    """Results of a method as lm-eval and this package write them, with 200 made-up documents."""
    import claims

    alpha, _, beta = name.partition(":")
    policy = (
        {"name": "fixed", "alpha": float(alpha), "beta": float(beta)} if beta else {"name": name}
    )
    tasks = [f"mini_{language}_{kind}" for kind in (*claims.AVERAGED, "rolling")]
    chosen = {task: {"0.1:0.9": 150, "0.5:0.3": 50} for task in tasks}
    content = {
        "results": {task: {} for task in [*tasks, f"mini_{language}"]},
        "configs": {task: {} for task in tasks},
        "config": {"trimix": {"policy": policy, "weights_chosen": chosen}},
    }
    folder.mkdir(parents=True)
    (folder / "results_1.json").write_text(json.dumps(content))
    for task in tasks:
        metric = "acc" if task.endswith("_ll") else "exact_match"
        rows = [{"doc_id": i, metric: float(rng.random() < right)} for i in range(200)]
        if task.endswith("rolling"):
            rows = [{"doc_id": i, "bits_per_byte": [-100.0, 200]} for i in range(200)]
        rng.shuffle(rows)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"samples_{task}_1.jsonl").write_text(text)


# ---------------------------------------------------------------------------- texts and problems


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


def test_answers_without_reading_score_nothing(corpora, tmp_path):
    """But for topics, of which one may be usual."""
    import judge
    import recipe
    import trivial

    few = recipe.SMOKE._replace(items={"problems": 150, "passages": 2})
    judge.write_items(few, corpora, "dev", tmp_path)
    found = trivial.scores(tmp_path, "bo")
    assert set(found) == {*judge.WRITTEN, *(f"{kind}_ll" for kind in judge.CHOSEN)}
    for task, scores in found.items():
        for name, value in scores.items():
            if not task.startswith("topic"):
                # Chance is 25 at most, of what is written, too: the first speaker's words in `say`.
                assert value <= (42 if task.endswith("_ll") else 35), (task, name)


def test_a_probe_reads_what_is_in_vectors_and_no_more():
    import numpy as np
    import probe

    rng = np.random.default_rng(3)
    topics = [("a", "b", "c")[i % 3] for i in range(300)]
    told = np.array([[topic == "a", topic == "b"] for topic in topics], dtype=float)
    told = told + rng.normal(scale=0.1, size=(300, 2))
    noise = rng.normal(size=(300, 20))
    half = (topics[:150], topics[150:])
    assert probe.accuracy(told[:150], half[0], told[150:], half[1]) == 100
    assert probe.accuracy(noise[:150], half[0], noise[150:], half[1]) < 50


def test_an_echo_is_found_out():
    import trivial

    items = [{"prompt": f"Text: a{i} b c", "answer": f"a{i} b"} for i in range(3)]
    assert trivial.written(items)["beginning"] == [item["answer"] for item in items]


def test_no_words_of_a_test_s_wording_are_a_training_one_s():
    """No piece between two fields, so no shared wording can hide in a prompt that is filled in."""
    import re

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


# ---------------------------------------------------------------------------- rows


def test_the_loss_looks_at_answers_and_their_ends(words):
    from streams import IGNORED, Documents

    stream = Documents(words, [["ask: one", " two three", "\n\nask: four", " five"]])
    ids, labels = stream.row(64, torch.Generator().manual_seed(0))
    judged = [i if label != IGNORED else None for i, label in zip(ids, labels, strict=True)]
    assert all(label in (IGNORED, i) for i, label in zip(ids, labels, strict=True))
    text = words.decode([int(i) for i in judged if i is not None])
    assert text.startswith(" two three\n\n five</s>") and "ask" not in text


def test_what_comes_again_is_judged(words):
    from streams import IGNORED, Repeats, Running

    stream = Repeats([Running(words, ["ab cd ef gh " * 40])], (300, 400))
    ids, labels = stream.row(200, torch.Generator().manual_seed(0))
    seen = [i for i in range(200) if labels[i] != IGNORED]
    assert 40 < len(seen) < 160
    for i in seen:
        assert labels[i] == ids[i] and ids[i] in ids[:i]


# ---------------------------------------------------------------------------- models


def untrained(words):
    import training
    from recipe import EXPERIMENT

    torch.manual_seed(0)
    return training.build(EXPERIMENT.shapes["small"], words).eval()


def test_heads_that_are_written_copy_before_any_training(words):
    import copying

    model = untrained(words)
    assert copying.accuracy(model) < 0.05
    copying.write_heads(model)
    # A token has several successors here: who looks for one token only is right in half of them.
    assert copying.accuracy(model, kinds=60) > 0.75
    assert copying.accuracy(model, kinds=400) > 0.85


def test_training_goes_on_where_it_was_ended(words, corpora, tmp_path, monkeypatch):
    import training
    from recipe import Shape, Stage
    from streams import Running

    stage = Stage(6, 1e-2, {"en": 1.0}, warmup=2, batch=128, length=64)
    streams = {"en": Running(words, corpora["en"].base)}
    shape = Shape(2, 32, 64, 2, 16)

    def trained(*ended):
        torch.manual_seed(0)
        model = training.build(shape, words)
        for after in ended:
            monkeypatch.setattr(training, "_EVERY", -1.0)  # after every step

            def draw(*how, left=[after], real=training.draw):  # noqa: B006
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                return real(*how)

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(training, "draw", draw)
                training.train(model, "a", stage, streams, 5, tmp_path)
            assert (tmp_path / training.STATE).exists()
            torch.manual_seed(1)
            model = training.build(shape, words)  # nothing of it counts
        training.train(model, "a", stage, streams, 5, tmp_path)
        assert not (tmp_path / training.STATE).exists()
        return model.state_dict()

    whole, ended = trained(), trained(2, 3)
    assert all(torch.equal(whole[name], ended[name]) for name in whole)
