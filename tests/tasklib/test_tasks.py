"""The benchmark tasks: what the model is asked, of which rows, and how a group is averaged.

Prompts are held against two things. The files in `tests/data/golden` have requests written out in
full, between ⟦ and ⟧. `reference` below, written from PROTOCOL.md in plain Python without a look
at the templates, says what every task has to ask for every row. (The golden files come from it,
and were then read against PROTOCOL.md.)
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import random
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tests.support import task_data
from tests.support.running import ROOT, program
from tests.support.task_data import LANGUAGES, SIB200, TOPICS, Row
from trimix_lm_eval.fusion.exemplars import answer_spans
from trimix_lm_eval.tasklib import belebele, languages, sib200
from trimix_lm_eval.utils import paths
from trimix_lm_eval.utils.errors import TrimixError

TASKS = paths.tasks_dir()
GOLDEN = task_data.DATA / "golden"
REAL = ROOT.parent / "shared" / "data"
FLORES = ("ben_Beng", "tam_Taml", "tel_Telu", "ory_Orya", "bod_Tibt", "kaz_Cyrl", "khk_Cyrl")
PASSWORD = "open sesame"

# ------------------------------------------------------------------------ PROTOCOL.md, section 3

NAMES = {
    "en": {
        **{"bo": "Tibetan", "ug": "Uyghur", "kk": "Kazakh", "mn": "Mongolian", "en": "English"},
        **{"ben_Beng": "Bengali", "tam_Taml": "Tamil", "tel_Telu": "Telugu", "ory_Orya": "Odia"},
        **{"bod_Tibt": "Tibetan", "uig_Arab": "Uyghur", "kaz_Cyrl": "Kazakh"},
        **{"khk_Cyrl": "Mongolian", "deu_Latn": "German"},
    },
    "zh": {"bo": "藏语", "ug": "维吾尔语", "kk": "哈萨克语", "mn": "蒙古语", "zh": "汉语"},
}
LABELS = {
    "bo": ["education", "economy", "law", "travel"],
    "ug": ["travel", "livelihood", "health", "sports"],
    "kk": ["economy", "culture", "politics", "geography"],
    "mn": ["education", "health", "politics", "technology"],
}
COMPREHENSION = (
    "Please read the following {name} dialogue and answer the question.\n"
    "Context:\n{lines}Question: {question}\nOptions:\n{choices}Answer:",
    "请阅读以下{name}对话并回答问题。\n"
    "对话内容：\n{lines}问题：{question}\n选项：\n{choices}答案：",
)
CLASSIFICATION = (
    "Please classify the following {name} text.\nText: {cut}\nCandidate labels: {labels}\nAnswer:",
    "请判断以下{name}文本的类别：\n文本：{cut}\n候选类别：{labels}\n答案：",
)
TRANSLATION = (
    "Please translate the following {source} text into {target}.\n{source}: {text}\n{target}: ",
    "请将下面的{source}文本翻译成{target}。\n{source}：{text}\n{target}：",
)
PROMPTS = {
    "response_selection": (
        "Please select an appropriate response for the following {name} dialogue.\n"
        "Context:\n{lines}Options:\n{choices}Answer:",
        "请为以下{name}对话选择合适的回答。\n对话内容：\n{lines}选项：\n{choices}答案：",
    ),
    "reading_comprehension": COMPREHENSION,
    "text_classification": CLASSIFICATION,
    "title_generation": (
        "Please write a title for the following article in {name}.\nArticle: {cut}\nTitle: ",
        "请为以下{name}文章写一个标题。\n文章：{cut}\n标题：",
    ),
    "math": (
        "Please solve the following {name} math problem step by step.\n"
        "Problem: {question}\nStep-by-step solution: ",
        "请分步解答下面的{name}数学问题。\n问题：{question}\n分步解答：",
    ),
    "translation_dialogue": TRANSLATION,
    "vocabulary": (
        "Please choose the meaning of the {name} word {word}.\nOptions:\n{choices}Answer:",
        "请选出{name}单词{word}的含义。\n选项：\n{choices}答案：",
    ),
    "text_classification_sentence": CLASSIFICATION,
    "translation_article": TRANSLATION,
    "sib200": CLASSIFICATION,
    "belebele": COMPREHENSION,
    "belebele_5shot": COMPREHENSION,
}


class Kind(NamedTuple):
    """What all tasks of a kind have in common.

    Attributes:
        shots: How many exemplars.
        tokens: How many new tokens at most, prompted in English and in Chinese.
        scored: How many rows are scored, of the files that were published.
        metrics: Their names, if the answer is generated.
    """

    shots: int
    tokens: tuple[int, int]
    scored: int
    metrics: str


ACC, F1, CHRF = "acc score", "acc score f1 f1_stderr", "chrf++ chrf++_stderr score score_stderr"
KINDS = {
    "response_selection": Kind(5, (2, 5), 407, ACC),
    "reading_comprehension": Kind(5, (2, 5), 200, ACC),
    "text_classification": Kind(12, (2, 5), 504, F1),
    "title_generation": Kind(3, (250, 250), 200, "rouge_l score"),
    "math": Kind(5, (250, 250), 200, ACC),
    "translation_dialogue": Kind(5, (200, 200), 673, CHRF),
    "vocabulary": Kind(5, (5, 5), 900, ACC),
    "text_classification_sentence": Kind(10, (5, 5), 432, F1),
    "translation_article": Kind(5, (100, 100), 912, CHRF),
    "sib200": Kind(7, (8, 8), task_data.SIB200_SIZES["test"], F1),
    "belebele": Kind(0, (2, 2), task_data.BELEBELE_SIZE, ACC),
    "belebele_5shot": Kind(5, (2, 2), -1, ACC),  # depends on the passages of the exemplars
}
CHOICES = {kind for kind, (*_, metrics) in KINDS.items() if metrics in (ACC, F1)} - {"math"}


class Case(NamedTuple):
    """One task; where there is a choice, its sibling by log-likelihood is called ``{task}_ll``."""

    task: str
    kind: str
    language: str
    prompt: str = "en"
    pair: tuple[str, ...] = ()


def milic_cases() -> Iterator[Case]:
    for code in LANGUAGES:
        for prompt, suffix in (("en", ""), ("zh", "_zh")):
            for kind in task_data.SIZES:
                if not kind.startswith("translation"):
                    yield Case(f"trimix_milic_{code}_{kind}{suffix}", kind, code, prompt)
                    continue
                short = kind.replace("_dialogue", "")
                for pair in ((code, prompt), (prompt, code)):
                    task = f"trimix_milic_{code}_{short}_{pair[0]}_{pair[1]}"
                    yield Case(task, kind, code, prompt, pair)


CASES = [
    *milic_cases(),
    *(Case(f"trimix_sib200_{code}", "sib200", code) for code in (*FLORES, "uig_Arab")),
    *(Case(f"trimix_belebele_{code}", "belebele", code) for code in FLORES),
    *(Case(f"trimix_belebele_{code}_5shot", "belebele_5shot", code) for code in FLORES),
]
MILIC = [case for case in CASES if case.kind in task_data.SIZES]
WITH_CHOICE = [case for case in CASES if case.kind in CHOICES]
NAMES_OF_TASKS = [case.task for case in CASES] + [f"{case.task}_ll" for case in WITH_CHOICE]
FURTHER_TASKS = [
    f"trimix_{benchmark}_{code}_ll"
    for benchmark in ("sib200", "belebele")
    for code in languages.further(benchmark)
]


class Files(NamedTuple):
    """The benchmarks' files on disk, as `data_dir` names them."""

    milic_eval: str
    sib200: str
    belebele: str

    def scored(self, case: Case) -> list[Row]:
        """The rows that a task scores, in their order."""
        if case.kind == "title_generation":
            return task_data.drawn_titles()[case.language]
        if case.kind in task_data.SIZES:
            return task_data.rows(case.kind, case.language, "test")
        if case.kind == "sib200":
            return self.sentences(case.language, "test")
        questions = self.questions(case.language)
        shown = {row["flores_passage"] for row in self.shown(case)}
        return [row for row in questions if row["flores_passage"] not in shown]

    def shown(self, case: Case, split: str = "train_1") -> list[Row]:
        """The exemplars of a task, in their order."""
        if case.kind == "belebele":
            return []
        if case.kind == "belebele_5shot":
            passages: dict[str, Row] = {}
            for row in self.questions(case.language):
                passages.setdefault(row["flores_passage"], row)
            return list(passages.values())[:5]
        if case.kind == "sib200":
            return by_label(self.sentences(case.language, "train"), TOPICS, 1)
        train = task_data.rows(case.kind, case.language, split)
        if case.kind == "text_classification":
            train = by_label(train, LABELS[case.language], 3)
        if case.kind == "text_classification_sentence":
            # No number per label fits ten rows: one of each, then the next of each, and so on.
            labels = sorted({label_of(row) for row in train})
            train = [row for turn in range(10) for row in by_label(train, labels, 1, turn)]
        return train[: KINDS[case.kind].shots]

    def asked(self, case: Case) -> list[int]:
        """Which rows the tests ask: the first, and one of each odd sort."""
        if case.kind != "title_generation":
            return [0, 1, 2, 3]
        sorts = [int(row["url"].rpartition("/")[2]) % 50 for row in self.scored(case)]
        return sorted({0, *(sorts.index(odd) for odd in (1, 2, 3))})

    def sentences(self, code: str, split: str) -> list[Row]:
        path = Path(self.sib200) / "data" / code / f"{split}.tsv"
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))

    def questions(self, code: str) -> list[Row]:
        text = (Path(self.belebele) / "data" / f"{code}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.rstrip("\n").split("\n")]


def label_of(row: Row) -> str:
    return row["category"] if "category" in row else row["label"]["en"]


def by_label(rows: list[Row], labels: Iterable[str], count: int, skip: int = 0) -> list[Row]:
    """A few rows of every label, first those of the first label; then all of them shuffled."""
    chosen: list[Row] = []
    for label in labels:
        chosen += [row for row in rows if label_of(row) == label][skip : skip + count]
    random.Random(0).shuffle(chosen)
    return chosen


def question(case: Case, row: Row) -> str:
    """What is asked about one row, up to the cue."""
    kind, names = case.kind, NAMES[case.prompt]
    known = {"name": names[case.language], "question": row.get("question"), "word": row.get("word")}
    if kind.startswith("belebele"):
        known["lines"] = row["flores_passage"] + "\n"
        options = [row[f"mc_answer{i}"] for i in (1, 2, 3, 4)]
    else:
        known["lines"] = "".join(line + "\n" for line in row.get("context", []))
        options = row.get("options", [])
    listed = zip("ABCDE", options, strict=False)
    known["choices"] = "".join(f"{letter}. {option}\n" for letter, option in listed)
    cut = 512 if kind == "text_classification_sentence" else 1024
    known["cut"] = row.get("content", row.get("text", ""))[:cut]
    known["labels"] = (", " if case.prompt == "en" else "、").join(labels_of(case))
    if case.pair:
        source, target = case.pair
        known.update(source=names[source], target=names[target], text=row[source])
    return PROMPTS[kind][case.prompt == "zh"].format(**known)


def labels_of(case: Case) -> list[str]:
    if case.kind == "sib200":
        return list(TOPICS)
    if case.kind == "text_classification":
        labels = LABELS[case.language]
    else:
        labels = ["animals", "nature", "people", "things"]
    return [task_data.LABELS_ZH[label] for label in labels] if case.prompt == "zh" else labels


def answer(case: Case, row: Row) -> str:
    """The true answer, as text."""
    if case.kind.startswith("belebele"):
        return "ABCD"[int(row["correct_answer_num"]) - 1]
    if case.kind == "sib200":
        return row["category"]
    if case.kind.startswith("text_classification"):
        return row["label"][case.prompt]
    if case.kind == "title_generation":
        return row["title"]
    return row[case.pair[1] if case.pair else "answer"]


def gap(case: Case) -> str:
    """What is between the cue and the answer: the other cues end in a space, or in ：."""
    return " " if case.kind in CHOICES and case.prompt == "en" else ""


def solution(case: Case, row: Row) -> str:
    """What an exemplar shows for an answer."""
    return row["cot"][case.prompt] if case.kind == "math" else answer(case, row)


def reference(case: Case, row: Row, exemplars: list[Row]) -> str:
    """The whole prompt for a row."""
    before = [question(case, e) + gap(case) + solution(case, e) + "\n\n" for e in exemplars]
    return "".join(before) + question(case, row)


# -------------------------------------------------------------------------------- files and tasks


@contextmanager
def excerpts() -> Iterator[None]:
    """Loaders take the excerpts of SIB-200 and Belebele for complete."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sib200, "_ROWS", task_data.SIB200_SIZES)
        patch.setattr(belebele, "_ROWS", task_data.BELEBELE_SIZE)
        yield


def manager(**metadata: Any) -> TaskManager:
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("benchmarks")
    return Files(
        str(task_data.write_milic(folder / "milic")),
        str(task_data.write_sib200(folder / "sib200")),
        str(task_data.write_belebele(folder / "belebele")),
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Metadata that names the files of TriMix's authors: unpacked, or locked in a zip (mn)."""
    folder = tmp_path_factory.mktemp("authors")
    authors = task_data.write_milic(folder / "data", "authors")
    wanted = [
        f"{name}/mn/{split}.json"
        for name in task_data.FOLDERS["authors"].values()
        for split in ("train_1", "test")
    ]
    archive = task_data.write_locked_zip(folder / "data.zip", authors, wanted, PASSWORD)
    return {
        "authors": {"data_dir": str(folder)},
        "zip": {"data_dir": str(archive), "data_password": PASSWORD},
    }


@pytest.fixture(scope="module")
def tasks(files) -> dict[str, Any]:
    """All tasks, with requests for a few rows."""
    with excerpts():
        loaded = manager(data_dir=files._asdict()).load(NAMES_OF_TASKS)["tasks"]
    for case in CASES:
        loaded[case.task].build_all_requests(samples=files.asked(case))
    for case in WITH_CHOICE:
        loaded[f"{case.task}_ll"].build_all_requests(limit=2)
    return loaded


def each(cases: list[Case], name: str = "case") -> Any:
    return pytest.mark.parametrize(name, cases, ids=[case.task for case in cases])


def prompts(task: Any) -> list[str]:
    """What the model is given for each row, once per row."""
    return [request.args[0] for request in task.instances if request.idx == 0]


# --------------------------------------------------------------------------------------- prompts


def golden(kind: str) -> dict[tuple[str, int], str]:
    """Prompts by task and number of exemplars."""
    text = (GOLDEN / f"{kind}.txt").read_text(encoding="utf-8")
    found = re.findall(r"^=== (\w+) \((\d+)-shot\)\n⟦(.*?)⟧$", text, re.DOTALL | re.MULTILINE)
    return {(task, int(shots)): prompt for task, shots, prompt in found}


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_the_golden_ones(kind, tasks):
    expected = golden(kind)
    assert {task for task, _ in expected} == {case.task for case in CASES if case.kind == kind}
    assert KINDS[kind].shots in {shots for _, shots in expected}
    for (name, shots), prompt in expected.items():
        task = tasks[name]
        assert task.fewshot_context(task.eval_docs[0], num_fewshot=shots) == prompt, name
        if shots == KINDS[kind].shots:
            assert prompts(task)[0] == prompt


@each(CASES)
def test_prompts_are_those_of_the_protocol(case, tasks, files):
    shown, scored = files.shown(case), files.scored(case)
    assert len(shown) == KINDS[case.kind].shots
    expected = [reference(case, scored[i], shown) for i in files.asked(case)]
    assert prompts(tasks[case.task]) == expected


@each(WITH_CHOICE)
def test_log_likelihoods_are_those_of_the_options_after_the_same_prompt(case, tasks, files):
    task = tasks[f"{case.task}_ll"]
    assert prompts(task) == prompts(tasks[case.task])[:2]
    said = iter(task.instances)
    for row in files.scored(case)[:2]:
        letters = list("ABCD")[: len(row.get("options", "ABCD"))]
        options = labels_of(case) if KINDS[case.kind].metrics == F1 else letters
        assert [next(said).args[1] for _ in options] == [gap(case) + option for option in options]
    assert next(said, None) is None


@pytest.mark.parametrize("kind", ["sib200", "belebele"])
def test_further_languages_ask_what_the_eight_do(kind, files):
    case = Case(f"trimix_{kind}_deu_Latn", kind, "deu_Latn")
    with excerpts():
        loaded = manager(data_dir=files._asdict()).load(f"{case.task}_ll")["tasks"]
    loaded[f"{case.task}_ll"].build_all_requests()
    shown = files.shown(case)
    expected = [reference(case, row, shown) for row in files.scored(case)]
    assert prompts(loaded[f"{case.task}_ll"]) == expected
    options = TOPICS if kind == "sib200" else "ABCD"
    said = [request.args[1] for request in loaded[f"{case.task}_ll"].instances]
    assert said == [f" {option}" for option in options] * len(expected)


@each([case for case in CASES if KINDS[case.kind].shots])
def test_the_answers_of_the_exemplars_can_be_found(case, tasks, files):
    """Which is what the policy `ppl_answer` reads."""
    solved = [solution(case, row) for row in files.shown(case)]
    for prompt in prompts(tasks[case.task]):
        assert [prompt[start:end].strip() for start, end in answer_spans(prompt)] == solved


@pytest.mark.parametrize("kind", ["text_classification", "title_generation"])
@pytest.mark.parametrize("prompt", ["en", "zh"])
def test_long_texts_end_at_the_1024th_character(kind, prompt, tasks):
    for case in MILIC:
        if (case.kind, case.prompt) == (kind, prompt):
            (text,) = [text for text in prompts(tasks[case.task]) if ">" in text]
            end = text.rpartition("<")[2]
            assert end.split("\n")[0] == "", "nothing of the text is shown after it"
            assert text.count(">") == 1, "the one after the 512th"


def test_long_sentences_end_at_the_512th_character(tasks):
    for case in MILIC:
        if case.kind == "text_classification_sentence":
            assert any("<\n" in text for text in prompts(tasks[case.task]))
            assert not any(">" in text for text in prompts(tasks[case.task]))


# ------------------------------------------------------------------------------- rows and settings


@each(CASES)
def test_settings(case, tasks, files):
    task, kind = tasks[case.task], KINDS[case.kind]
    assert task.config.num_fewshot == kind.shots
    assert task.VERSION == 1.0
    assert {request.request_type for request in task.instances} == {"generate_until"}
    assert task.instances[0].args[1] == {
        "until": ["\n"],
        "max_gen_toks": kind.tokens[case.prompt == "zh"],
        "do_sample": False,
    }
    assert list(task.aggregation()) == list(task.higher_is_better()) == kind.metrics.split()
    worse = {name for name, higher in task.higher_is_better().items() if not higher}
    assert worse == {name for name in kind.metrics.split() if name.endswith("_stderr")}
    size = len(files.scored(case)) if kind.scored < 0 else kind.scored
    assert len(task.eval_docs) == size


@each(WITH_CHOICE)
def test_settings_of_log_likelihoods(case, tasks):
    task = tasks[f"{case.task}_ll"]
    assert {request.request_type for request in task.instances} == {"loglikelihood"}
    labels = ["acc", "score", "acc_norm", "f1", "f1_stderr"]
    expected = labels if KINDS[case.kind].metrics == F1 else ACC.split()
    assert sorted(task.aggregation()) == sorted(expected)
    assert task.config.num_fewshot == KINDS[case.kind].shots
    assert len(task.eval_docs) == len(tasks[case.task].eval_docs)


@each(CASES)
def test_all_rows_are_scored_in_their_order_against_their_answers(case, tasks, files):
    docs, scored = tasks[case.task].eval_docs.to_list(), files.scored(case)
    if case.kind.startswith("belebele"):
        all_ids = {json.dumps(row): str(i) for i, row in enumerate(files.questions(case.language))}
        ids = [all_ids[json.dumps(row)] for row in scored]
    else:
        ids = [str(row["id" if case.kind in task_data.SIZES else "index_id"]) for row in scored]
    assert [doc["id"] for doc in docs] == ids
    true = [answer(case, row) for row in scored]
    assert [tasks[case.task].doc_to_target(doc) for doc in docs] == true
    if case.kind in CHOICES:
        options = labels_of(case) if KINDS[case.kind].metrics == F1 else list("ABCD")
        gold = [tasks[f"{case.task}_ll"].doc_to_target(doc) for doc in docs]
        assert [options[i] for i in gold] == true


@each([case for case in CASES if KINDS[case.kind].shots])
def test_exemplars_are_not_scored(case, tasks):
    columns = ("context", "question", "text", "content", "source", "word")
    scored, shown = (
        {json.dumps([doc.get(name) for name in columns]) for doc in tasks[case.task].dataset[split]}
        for split in ("test", "exemplars")
    )
    assert len(shown) >= KINDS[case.kind].shots
    assert not scored & shown


@pytest.mark.parametrize("code", FLORES)
def test_five_exemplars_of_belebele_cost_the_questions_on_their_passages(code, tasks, files):
    everything = files.questions(code)
    passages = list(dict.fromkeys(row["flores_passage"] for row in everything))
    task = tasks[f"trimix_belebele_{code}_5shot"]
    shown = [doc["context"][0] for doc in task.dataset["exemplars"]]
    assert shown == passages[:5]
    assert {doc["context"][0] for doc in task.eval_docs} == set(passages[5:])
    lost = sum(row["flores_passage"] in shown for row in everything)
    assert lost > 5, "some of these passages have two questions"
    assert len(task.eval_docs) == len(everything) - lost


@pytest.mark.parametrize("split", ["train_2", "train_3"])
def test_exemplars_of_another_file(split, files):
    cases = [case for case in MILIC if case.language in ("bo", "mn")]
    loaded = manager(data_dir=files.milic_eval, exemplars=split).load([c.task for c in cases])
    for case in cases:
        task, rows = loaded["tasks"][case.task], files.scored(case)
        shown = files.shown(case, split)
        prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=len(shown))
        assert prompt == reference(case, rows[0], shown)


def test_a_file_of_exemplars_that_does_not_exist(files):
    with pytest.raises(TrimixError, match="'train_4'.*\n.*train_1, train_2, train_3"):
        manager(data_dir=files.milic_eval, exemplars="train_4").load("trimix_milic_bo_math")


@pytest.mark.parametrize("task", ["trimix_belebele_ben_Beng", "trimix_belebele_ben_Beng_5shot"])
def test_exemplars_of_milic_eval_do_not_concern_belebele(task, tasks, files):
    with excerpts():
        other = manager(data_dir=files._asdict(), exemplars="train_2").load(task)["tasks"][task]
    assert other.dataset["test"].to_list() == tasks[task].dataset["test"].to_list()


def test_titles_are_the_200_that_the_authors_drew(tasks, places):
    before = random.getstate()
    random.seed(0)
    drawn = {
        code: random.sample(task_data.rows("title_generation", code, "test"), 200)
        for code in ("bo", "ug", "kk", "mn")
    }
    random.setstate(before)
    authors = manager(**places["authors"])
    for code, rows in drawn.items():
        task = f"trimix_milic_{code}_title_generation"
        docs = tasks[task].eval_docs.to_list()
        assert [doc["title"] for doc in docs] == [row["title"] for row in rows]
        assert authors.load(task)["tasks"][task].eval_docs.to_list() == docs


@pytest.mark.parametrize("place", ["authors", "zip"])
def test_every_release_gives_the_same_documents(place, places, tasks):
    cases = [
        case
        for case in MILIC
        if case.kind in task_data.FOLDERS["authors"] and case.language == "mn"
    ]
    loaded = manager(**places[place]).load([case.task for case in cases])["tasks"]
    for name, task in loaded.items():
        for split in ("test", "exemplars"):
            assert task.dataset[split].to_list() == tasks[name].dataset[split].to_list()


def test_the_zip_is_locked(places):
    archive = places["zip"]["data_dir"]
    name = "data/math/mn/test.json"
    with zipfile.ZipFile(archive) as opened:
        assert json.loads(opened.read(name, pwd=PASSWORD.encode()))
        with pytest.raises(RuntimeError, match="password"):
            opened.read(name)
    for given in ({}, {"data_password": "open barley"}):
        with pytest.raises(TrimixError, match="password"):
            manager(data_dir=archive, **given).load("trimix_milic_mn_math")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the whole of SIB-200 beside the checkout")
def test_whole_files_of_sib200_and_belebele(tmp_path):
    for name in ("sib200", "belebele"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").symlink_to(REAL / name, target_is_directory=True)
    files = Files("", str(tmp_path / "sib200"), str(tmp_path / "belebele"))
    real = [case for case in CASES if case.kind == "sib200" and case.language in SIB200]
    real += [case for case in CASES if case.task.startswith("trimix_belebele_ben_Beng")]
    loaded = manager(data_dir=str(REAL)).load([case.task for case in real])["tasks"]
    for case in real:
        task, scored, shown = loaded[case.task], files.scored(case), files.shown(case)
        assert len(task.eval_docs) == len(scored)
        for i in (0, 61, len(scored) - 1):
            prompt = task.fewshot_context(task.eval_docs[i], num_fewshot=len(shown))
            assert prompt == reference(case, scored[i], shown)
    sizes = {len(task.eval_docs) for name, task in loaded.items() if "sib200" in name}
    assert sizes == {204}
    assert len(loaded["trimix_belebele_ben_Beng"].eval_docs) == 900
    assert len(loaded["trimix_belebele_ben_Beng_5shot"].eval_docs) == 891


# ------------------------------------------------------------------------------------------ groups


def groups() -> dict[str, list[str]]:
    """The tasks of every group, in no order."""
    made: dict[str, list[str]] = {}
    for suffix, rich, column in (("", "en", "eng_g"), ("_zh", "zh", "chn_g")):
        whole = f"trimix_milic{suffix}"
        for code in LANGUAGES:
            pre, own = f"trimix_milic_{code}", f"trimix_milic_{code}{suffix}"
            made[f"{own}_mc"] = [
                f"{pre}_reading_comprehension{suffix}",
                f"{pre}_response_selection{suffix}",
                f"{pre}_text_classification{suffix}",
            ]
            made[f"{own}_{column}"] = [f"{pre}_math{suffix}", f"{pre}_translation_{code}_{rich}"]
            made[f"{own}_lrl_g"] = [
                f"{pre}_title_generation{suffix}",
                f"{pre}_translation_{rich}_{code}",
            ]
            made[own] = [task for c in ("mc", column, "lrl_g") for task in made[f"{own}_{c}"]]
        for c in ("mc", column, "lrl_g"):
            every = [
                task for code in LANGUAGES for task in made[f"trimix_milic_{code}{suffix}_{c}"]
            ]
            made[f"{whole}_{c}"] = every
        made[whole] = [task for code in LANGUAGES for task in made[f"trimix_milic_{code}{suffix}"]]
        made[f"{whole}_columns"] = made[whole]
    for code in LANGUAGES:
        made[f"trimix_milic_{code}_mc_ll"] = [f"{t}_ll" for t in made[f"trimix_milic_{code}_mc"]]
    made["trimix_milic_mc_ll"] = [f"{t}_ll" for t in made["trimix_milic_mc"]]
    for end in ("", "_ll"):
        indic = ("ben_Beng", "tam_Taml", "tel_Telu", "ory_Orya")
        for benchmark in ("sib200", "belebele"):
            made[f"trimix_indic_{benchmark}{end}"] = [
                f"trimix_{benchmark}_{code}{end}" for code in indic
            ]
        made[f"trimix_indic{end}"] = (
            made[f"trimix_indic_sib200{end}"] + made[f"trimix_indic_belebele{end}"]
        )
    made["trimix_all"] = made["trimix_milic"] + made["trimix_indic"]
    return made


GROUPS = groups()
#: Groups that together contain all others.
OUTER = ["trimix_all", "trimix_milic_zh", "trimix_milic_columns", "trimix_milic_zh_columns"]
OUTER += ["trimix_indic_ll", "trimix_milic_mc_ll"]


def test_the_number_of_tasks_in_the_large_groups():
    sizes = {name: len(set(GROUPS[name])) for name in OUTER}
    assert sizes == {
        **{"trimix_all": 36, "trimix_milic_zh": 28, "trimix_milic_columns": 28},
        **{"trimix_milic_zh_columns": 28, "trimix_indic_ll": 8, "trimix_milic_mc_ll": 12},
    }
    assert [len(GROUPS[f"trimix_milic_{c}"]) for c in ("mc", "eng_g", "lrl_g")] == [12, 8, 8]


def test_groups_have_their_members_with_equal_weights(tasks, monkeypatch):
    def given(self, *_, **__):
        self.dataset = tasks[self.config.task].dataset  # which is loaded already

    monkeypatch.setattr(ConfigurableTask, "download", given)
    loader, seen = manager(), set()
    for outer in OUTER:
        for name, group in loader.load(outer)["groups"].items():
            seen.add(name)
            leaves = [task.task_name for task in group.get_all_tasks()]
            assert sorted(leaves) == sorted(GROUPS[name]), name
            (mean,) = group.aggregate_metric_list
            assert (mean.metric, mean.aggregation) == ("score", "mean")
            assert mean.weight_by_size is False
    assert seen == set(GROUPS) == set(loader.all_groups) - {"trimix_demo"}


def test_nothing_else_is_in_the_folder():
    known = manager()
    demo = {f"trimix_demo_{kind}" for kind in ("rolling", "finish", "follow", "say", "gloss_to")}
    assert set(known.all_subtasks) == {*NAMES_OF_TASKS, *FURTHER_TASKS} | demo
    assert len(FURTHER_TASKS) == 33 + 31, "Bosnian and Galician are not in Belebele"
    assert len(NAMES_OF_TASKS) + len(GROUPS) + len(demo) + 1 == 232
    assert len(list(TASKS.rglob("*.yaml"))) == 232 + len(FURTHER_TASKS)


def test_tags_are_the_same_task_in_all_languages():
    known = manager()
    tags: dict[str, set[str]] = {}
    for name in NAMES_OF_TASKS:
        case = next(case for case in CASES if case.task == name.removesuffix("_ll"))
        short = name.replace(f"_{case.language}", "", 1)
        if case.pair:
            short = short[: short.index("_".join(("", *case.pair)))]
            short += "_zh" * (case.prompt == "zh")
        tags.setdefault(short, set()).add(name)
    for name in FURTHER_TASKS:
        tags.setdefault(f"trimix_{name.split('_')[1]}_further_ll", set()).add(name)
    assert set(known.all_tags) == set(tags)
    for tag, members in tags.items():
        assert set(known.task_index[tag].tags) == members


def test_the_committed_files_are_those_that_are_generated():
    spec = importlib.util.spec_from_file_location("generate", TASKS / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    wanted = generate.files()
    found = {
        path.relative_to(TASKS).as_posix(): path.read_text(encoding="utf-8")
        for path in TASKS.rglob("*.yaml")
        if path.parts[-2] != "demo"
    }
    assert found == wanted


# -------------------------------------------------------------------------------------- end to end


class Oracle(LM):
    """Knows all answers; of every second document it withholds the answer to a choice."""

    def generate_until(self, requests, disable_tqdm=False):
        return [self.say(request) for request in requests]

    def say(self, request) -> str:
        doc = request.doc
        if "gold" in doc and request.doc_id % 2:
            return "?"
        if "math" in request.task_name:
            return f"So the answer is {doc['answer']}."
        if "title" in request.task_name:
            return "?"
        for name in ("answer", "label", "target"):
            if name in doc:
                return f" {doc[name]}\nand more"
        raise AssertionError(request.task_name)

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.mark.parametrize(
    ("outer", "inner", "limit"), [("trimix_milic", 16, 0.01), ("trimix_indic", 2, 0.3)]
)
def test_scores_of_groups_are_means_over_tasks_whatever_their_sizes(outer, inner, limit, files):
    with excerpts():
        loader = manager(data_dir=files._asdict())
        found = simple_evaluate(
            Oracle(), tasks=[outer], task_manager=loader, limit=limit, log_samples=False
        )["results"]
    sizes = {name: found[name]["sample_len"] for name in GROUPS[outer]}
    assert len(set(sizes.values())) > 1
    expected = {name: math.ceil(size / 2) / size for name, size in sizes.items()}
    for name in expected:
        if "math" in name or "translation" in name:
            expected[name] = 1.0
        elif "title" in name:
            expected[name] = 0.0
        assert found[name]["score,none"] == pytest.approx(expected[name]), name
    assert len(set(GROUPS) & set(found)) == 1 + inner
    for name in set(GROUPS) & set(found):
        mean = sum(expected[task] for task in GROUPS[name]) / len(GROUPS[name])
        assert found[name]["score,none"] == pytest.approx(mean), name
        errors = [found[task]["score_stderr,none"] for task in GROUPS[name]]
        error = math.sqrt(sum(e * e for e in errors)) / len(errors)
        assert found[name]["score_stderr,none"] == pytest.approx(error), name
    for name in sizes:
        if "translation" in name:
            assert found[name]["chrf++,none"] == pytest.approx(100)
            assert found[name]["chrf++_stderr,none"] == pytest.approx(0)


def evaluate(model: LM | dict[str, Any], tasks: list[str], **metadata: Any) -> dict[str, Any]:
    """Run two documents of each task on a model, or on the demo trio with a policy."""
    trio = isinstance(model, dict)
    with excerpts():
        return simple_evaluate(
            model="trimix" if trio else model,
            model_args={"pretrained": "demo", **model} if trio else None,
            batch_size=8 if trio else None,
            tasks=tasks,
            task_manager=manager(**metadata),
            limit=2,
            gen_kwargs={"max_gen_toks": 6},
            bootstrap_iters=0,
        )


def samples(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {
        task: sorted(found, key=lambda sample: sample["doc_id"])
        for task, found in results["samples"].items()
    }


def check_run(results: dict[str, Any], files: Files) -> None:
    """Every request is the protocol's, every metric a number, and the choices count as said."""
    for name, found in samples(results).items():
        case = next(case for case in CASES if case.task == name.removesuffix("_ll"))
        shown, scored = files.shown(case), files.scored(case)
        assert len(found) == 2
        for sample in found:
            prompt = sample["arguments"][0][0]
            assert prompt == reference(case, scored[sample["doc_id"]], shown)
        numbers = results["results"][name]
        for metric in KINDS[case.kind].metrics.split():
            assert math.isfinite(numbers[f"{metric},none"]), (name, metric)
        if case.kind in CHOICES:
            right = [is_right(case, name, s["resps"], scored[s["doc_id"]]) for s in found]
            assert numbers["acc,none"] == numbers["score,none"] == sum(right) / 2


def is_right(case: Case, name: str, said: Any, row: Row) -> bool:
    """Whether a choice is the true one, told from the raw answers of a model."""
    gold = answer(case, row)
    if name.endswith("_ll"):
        options = labels_of(case) if KINDS[case.kind].metrics == F1 else list("ABCD")
        values = [float(option[0][0]) for option in said]
        return options[values.index(max(values))] == gold
    text = said[0][0].strip().split("\n")[0].strip()
    if KINDS[case.kind].metrics == F1:
        return text.lower() == gold.lower()
    return (text[:1] if text[:1] in tuple("ABCDE") else text) == gold


FIXED = {"policy": "fixed", "alpha": 0.1, "beta": 0.9}


@pytest.mark.parametrize(
    ("place", "group"), [("authors", "trimix_milic_ug_zh"), ("zip", "trimix_milic_mn")]
)
def test_the_demo_runs_a_language_of_milic_eval(place, group, places, files):
    results = evaluate(FIXED, [group], **places[place])
    check_run(results, files)
    found = results["results"]
    scores = [found[task]["score,none"] for task in GROUPS[group]]
    assert len(scores) == 7
    assert found[group]["score,none"] == pytest.approx(sum(scores) / 7)
    assert len(results["groups"]) == 4


REAL_ROWS = {
    "fixed": [*(f"trimix_sib200_{code}" for code in SIB200), "trimix_belebele_ben_Beng_5shot"],
    "ppl": [
        *("trimix_sib200_uig_Arab_ll", "trimix_belebele_ben_Beng"),
        "trimix_belebele_ben_Beng_ll",
    ],
}


@pytest.mark.parametrize("policy", REAL_ROWS)
def test_the_demo_runs_real_rows(policy, files):
    model = FIXED if policy == "fixed" else {"policy": policy}
    results = evaluate(model, REAL_ROWS[policy], data_dir=files._asdict())
    assert set(results["results"]) == set(REAL_ROWS[policy])
    check_run(results, files)


def test_hf_gives_what_the_trio_gives_with_the_large_model_alone(files):
    tasks = ["trimix_milic_bo", "trimix_belebele_ben_Beng_5shot_ll"]
    hf = HFLM(
        pretrained=str(paths.demo_dir() / "large_ins"),
        dtype="float32",
        device="cpu",
        batch_size=4,
        logits_cache=False,
    )
    theirs = evaluate(hf, tasks, data_dir=files._asdict())
    ours = evaluate({"policy": "large_ins"}, tasks, data_dir=files._asdict())
    check_run(theirs, files)
    for name, found in samples(ours).items():
        for mine, other in zip(found, samples(theirs)[name], strict=True):
            if name.endswith("_ll"):
                values = [[float(r[0][0]) for r in sample["resps"]] for sample in (mine, other)]
                assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-4)
            else:
                assert mine["resps"] == other["resps"]
    assert ours["results"]["trimix_milic_bo"] == theirs["results"]["trimix_milic_bo"]


def test_the_command_line_prints_the_groups(files):
    """As a user types it, but for the number of tokens."""
    run = program(
        *("-m", "lm_eval", "--model", "trimix", "--model_args", "pretrained=demo"),
        *("--tasks", "trimix_milic_bo", "--limit", "2", "--gen_kwargs", "max_gen_toks=4"),
        *("--metadata", json.dumps({"data_dir": files.milic_eval})),
    )
    assert run.returncode == 0, run.stderr[-2000:]
    tasks_table, groups_table = run.stdout[run.stdout.index("|") :].split("\n\n", 1)
    for row in ("bo: Avg", " - bo: MC", " - bo: ENG-G", " - bo: LRL-G"):
        for table in (tasks_table, groups_table):
            (line,) = re.findall(rf"^\|{row} *\|.*$", table, re.MULTILINE)
            assert "|score " in line
    for task in GROUPS["trimix_milic_bo"]:
        assert f"  - {task}" in tasks_table
