"""What the tasks make of answers: every number against a reference that shares no code with it.

Answers are given, not generated: documents carry them, and a model that reads them off runs through
lm-eval with the tasks' own templates. References are sacrebleu, and what is written here from the
definitions; the cases by hand name the words that a text is cut into, in all eight scripts.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import make_table
from sacrebleu.metrics import CHRF

from trimix_lm_eval.tasklib import answers, metrics, rouge
from trimix_lm_eval.utils.paths import tasks_dir

needs_pyonmttok = pytest.mark.skipif(
    importlib.util.find_spec("pyonmttok") is None, reason="no package for this Python"
)

# ---------------------------------------------------------------- given predictions

#: A true text and what a model says: the same, nearly, in other words, less, more, nothing.
TEXTS = [
    # Tibetan, Uyghur, Kazakh, Mongolian
    ("བོད་ཀྱི་ལོ་རྒྱུས་ངོ་སྤྲོད།", " བོད་ཀྱི་ལོ་རྒྱུས་མདོར་བསྡུས།\nའདི་ནི་ཕྲེང་བ་གཉིས་པའོ།"),
    ("ئۈرۈمچىدە يېڭى مەكتەپ قۇرۇلدى", "ئۈرۈمچىدە مەكتەپ، قۇرۇلدى؟"),
    ("\u0674بىزدىڭ قالا تۋرالى جاڭالىق", "قالا تۋرالى \u0674بىر جاڭالىق"),
    ("ᠮᠣᠩᠭᠣᠯ\u202fᠤᠨ ᠰᠣᠶᠣᠯ ᠪᠠ ᠲᠡᠦᠬᠡ", "ᠮᠣᠩᠭᠣᠯ ᠤᠨ ᠰᠣᠶᠣᠯ\u180b ᠲᠡᠦᠬᠡ᠃"),
    # Bengali, Tamil, Telugu, Odia
    ("বাংলা ভাষার ইতিহাস ও সাহিত্য", "\n\nবাংলা সাহিত্যের ইতিহাস।"),
    ("தமிழ் மொழியின் வரலாறு", "தமிழ் மொழியின் வரலாறு"),
    ("తెలుగు భాష చరిత్ర", "చరిత్ర తెలుగు భాష"),
    ("ଓଡ଼ିଆ ଭାଷାର କ୍ଷେତ୍ର ଓ ଇତିହାସ", "ଓଡ଼ିଆ ଭାଷାର କ୍ଷେ\u200dତ୍ର, ଇତିହାସ"),
    # English in another case, Chinese, nothing, punctuation
    ("The World Health Report of 2024", "the WORLD report, 2024: part 2"),
    ("中国西藏 བོད་ལྗོངས། 2023年", "西藏 བོད་ལྗོངས 2023 年"),
    ("བཀྲ་ཤིས་བདེ་ལེགས།", ""),
    ("ياخشىمۇسىز", "؟! ،။ …"),
]
LABELS = ["economy", "culture", "politics", "geography"]
#: A true label and what a model says; the last label is never said.
SAID_LABELS = [
    ("economy", "economy"),
    ("economy", " Economy\nText: …"),
    ("economy", "culture"),
    ("economy", "the economy"),
    ("economy", "economy."),
    ("culture", "CULTURE"),
    ("culture", "politics"),
    ("culture", ""),
    ("politics", "politics"),
    ("politics", "economy"),
    ("geography", "culture"),
    ("geography", "ཨ"),
]
SAID_LETTERS = list(
    zip("ABCDABCDEABC", ["A", " B", "\nC", "d", "B. x", "Ｂ", *"CDEBB", ""], strict=True)
)
SAID_NUMBERS = [
    ("24.2", "5+19.2=24.2元"),
    ("1234.5", "The answer is 1,234.50."),
    ("12", "6 * 2 = 12.0"),
    ("12", "12 is the answer to question 3"),
    ("7", "I do not know."),
    ("7", ""),
    ("24", "ལན་ནི་༢༤།"),
    ("15", "উত্তর ১৫।"),
    ("15", "14\n15"),
    ("0.5", "1/2"),
    ("3", "3。"),
    ("100", "3 apples cost 100"),
]


def likelihoods(count: int, seed: int) -> list[list[float]]:
    generator = random.Random(seed)
    return [[-9 * generator.random() for _ in range(count)] for _ in range(12)]


def documents() -> dict[str, list[dict]]:
    """Documents by kind of task, as the tasks' loaders make them, with answers to be given."""
    common = {
        "id": "0",
        "language": "Tibetan",
        "source_language": "Tibetan",
        "target_language": "x",
    }
    question = {
        "context": ["x"],
        "question": "x",
        "options": list("vwxyz"),
        "letters": list("ABCDE"),
    }
    kinds = {
        "translation": [{"source": "x", "target": true, "said": said} for true, said in TEXTS],
        "title": [{"content": "x", "title": true, "said": said} for true, said in TEXTS],
        "label": [
            {"text": "x", "labels": LABELS, "label": true, "gold": LABELS.index(true), "said": said}
            for true, said in SAID_LABELS
        ],
        "choice": [
            {**question, "answer": true, "gold": "ABCDE".index(true), "said": said}
            for true, said in SAID_LETTERS
        ],
        "number": [{"question": "x", "answer": true, "said": said} for true, said in SAID_NUMBERS],
    }
    for kind, count in (("label", 4), ("choice", 5)):
        rows = zip(kinds[kind], likelihoods(count, seed=count), strict=True)
        kinds[f"{kind}_ll"] = [{**doc, "likelihoods": values} for doc, values in rows]
    return {kind: [{**common, **doc} for doc in docs] for kind, docs in kinds.items()}


DOCUMENTS = documents()
#: The templates that a task of each kind is made of.
TEMPLATES = {
    "translation": ["milic_eval/_translation_dialogue_en"],
    "title": ["milic_eval/_title_generation_en"],
    "label": ["milic_eval/_text_classification_en"],
    "label_ll": ["milic_eval/_text_classification_en", "_labels_ll"],
    "choice": ["milic_eval/_reading_comprehension_en"],
    "choice_ll": ["milic_eval/_reading_comprehension_en", "_letters_ll"],
    "number": ["milic_eval/_math_en"],
}
LOADER = """
import json
from pathlib import Path
import datasets

def load(kind, rows=None, **_):
    file = Path(__file__).parent / "documents.json"
    docs = json.loads(file.read_text(encoding="utf-8"))[kind][:rows]
    return {split: datasets.Dataset.from_list(docs) for split in ("test", "exemplars")}
"""


class Said(LM):
    """A model whose answers stand in the documents."""

    def generate_until(self, requests, disable_tqdm=False):
        return [request.doc["said"] for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(request.doc["likelihoods"][request.idx], False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task per kind, ``t_{kind}``, and ``t_{kind}_one`` with a single document; a group."""
    path = tmp_path_factory.mktemp("tasks")
    (path / "data.py").write_text(LOADER, encoding="utf-8")
    (path / "documents.json").write_text(json.dumps(DOCUMENTS), encoding="utf-8")
    for kind, templates in TEMPLATES.items():
        include = json.dumps([str(tasks_dir() / name) for name in templates])
        for name, rows in ((f"t_{kind}", 12), (f"t_{kind}_one", 1)):
            kwargs = json.dumps({"kind": kind, "rows": rows})
            (path / f"{name}.yaml").write_text(
                f"include: {include}\ntask: {name}\ncustom_dataset: !function data.load\n"
                f"dataset_kwargs: {kwargs}\nnum_fewshot: 0\n",
                encoding="utf-8",
            )
    members = [f"t_{kind}" for kind in TEMPLATES]
    (path / "t_group.yaml").write_text(
        f"group: t_group\ntask: {json.dumps(members)}\naggregate_metric_list:\n"
        "  - {metric: score, aggregation: mean, weight_by_size: false}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def scored(folder):
    """``scored(name)`` gives lm-eval's results for a task or group of `folder`."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    known: dict[str, dict] = {}

    def run(name: str) -> dict:
        if name not in known:
            known[name] = simple_evaluate(model=Said(), tasks=[name], task_manager=manager)
        return known[name]

    return run


# ---------------------------------------------------------------- references


def first_line(text: str) -> str:
    return text.strip().split("\n")[0].strip()


#: Chinese characters, first and last of their blocks.
CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f"


def words(text: str) -> list[str]:
    """The words of ROUGE-L, from the description of it."""
    import pyonmttok

    text = text.lower().replace("\ufffd", "")  # what no decoder could read
    text = re.sub("[\t\r\n]", " ", text)
    kept = [c for c in text if unicodedata.category(c)[0] != "C"]
    spaced = [" " if unicodedata.category(c)[0] in "PZ" or c in "$+<=>^`|~" else c for c in kept]
    cut, _ = pyonmttok.Tokenizer("aggressive").tokenize("".join(spaced))
    return re.sub(f"([{CHINESE}])", r" \1 ", " ".join(cut)).split()


def lcs(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence."""
    if not a or not b:
        return 0
    row = [0] * (len(b) + 1)
    for x in a:
        above, row = row, [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]


def f_measure(true: list[str], said: list[str]) -> float:
    common = lcs(true, said)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(true)
    return 2 * precision * recall / (precision + recall)


def weighted_f1(pairs: list[tuple[str, str]]) -> float:
    """The mean of the labels' F1, each with its share of the documents as weight."""
    total = 0.0
    for label in {true for true, _ in pairs}:
        hits = sum(true == said == label for true, said in pairs)
        support = sum(true == label for true, _ in pairs)
        if hits:
            precision = hits / sum(said == label for _, said in pairs)
            recall = hits / support
            total += support * 2 * precision * recall / (precision + recall)
    return total / len(pairs)


def last_number(line: str) -> float | None:
    """The last number of a line, character by character."""
    line = line.replace(",", "")
    line = line[:-1] if line.endswith(".") else line
    found, at = None, 0
    while at < len(line):
        end = at
        while end < len(line) and line[end].isdecimal():
            end += 1
        if end > at and line[end : end + 1] == "." and line[end + 1 : end + 2].isdecimal():
            end += 1
            while end < len(line) and line[end].isdecimal():
                end += 1
        if end > at:
            found = float(line[at:end])
        at = max(end, at + 1)
    return found


CHRF_PP = CHRF(word_order=2, lowercase=True)


def chrf_pp(pairs) -> float:
    return CHRF_PP.corpus_score([said for _, said in pairs], [[true for true, _ in pairs]]).score


def mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def close(value: float):
    return pytest.approx(value, abs=1e-9)


# ---------------------------------------------------------------- whole test sets


def numbers(scored, kind: str) -> dict[str, float]:
    return scored(f"t_{kind}")["results"][f"t_{kind}"]


def test_translation_is_chrf_pp_of_the_corpus(scored):
    found = numbers(scored, "translation")
    expected = chrf_pp([(true, first_line(said)) for true, said in TEXTS])
    assert 20 < expected < 80
    assert found["chrf++,none"] == close(expected)
    assert found["score,none"] == close(expected / 100)
    # Neither the mean over documents nor the score with case or of characters only.
    each = [chrf_pp([(true, first_line(said))]) for true, said in TEXTS]
    assert abs(found["chrf++,none"] - sum(each) / len(each)) > 0.5


def test_titles_are_rouge_l_on_every_python(scored):
    found = numbers(scored, "title")
    # In the order of TEXTS; the words in common over the mean of the two numbers of words.
    values = [4 / 6, 3 / 3.5, 3 / 4, 3 / 4.5, 2 / 4, 1, 2 / 3, 4 / 4.5, 4 / 6, 6 / 7, 0, 0]
    assert found["rouge_l,none"] == close(sum(values) / 12)


@needs_pyonmttok
def test_titles_are_rouge_l_over_words_of_any_script(scored):
    found = numbers(scored, "title")
    values = [f_measure(words(true), words(first_line(said))) for true, said in TEXTS]
    mean, error = mean_and_error(values)
    assert 0.3 < mean < 0.9
    for metric in ("rouge_l", "score"):
        assert found[f"{metric},none"] == close(mean)
        assert found[f"{metric}_stderr,none"] == close(error)


def test_labels_are_accuracy_and_weighted_f1(scored):
    found = numbers(scored, "label")
    pairs = [(true, first_line(said).lower()) for true, said in SAID_LABELS]
    mean, error = mean_and_error([true == said for true, said in pairs])
    assert mean == 4 / 12
    for metric in ("acc", "score"):
        assert found[f"{metric},none"] == close(mean)
        assert found[f"{metric}_stderr,none"] == close(error)
    assert found["f1,none"] == close(weighted_f1(pairs))
    # By hand, as hits, times said, times true, and F1 = 2 · hits / (said + true): economy 2, 3, 5,
    # 1/2; culture 1, 3, 3, 1/3; politics 1, 2, 2, 1/2; geography 0, 0, 2, 0.
    assert found["f1,none"] == close((5 / 2 + 3 / 3 + 2 / 2) / 12)


def test_likely_labels_are_accuracy_per_character_too_and_weighted_f1(scored):
    found = numbers(scored, "label_ll")
    golds, said, normed = [], [], []
    for doc in DOCUMENTS["label_ll"]:
        golds.append(doc["gold"])
        said.append(int(np.argmax(doc["likelihoods"])))
        lengths = [len(label) for label in LABELS]
        normed.append(int(np.argmax(np.array(doc["likelihoods"]) / lengths)))
    assert said != normed
    accuracy = sum(map(int.__eq__, golds, said)) / 12
    assert found["acc,none"] == found["score,none"] == close(accuracy)
    assert found["acc_norm,none"] == close(sum(map(int.__eq__, golds, normed)) / 12)
    pairs = [(LABELS[gold], LABELS[index]) for gold, index in zip(golds, said, strict=True)]
    assert found["f1,none"] == close(weighted_f1(pairs))


def test_letters_are_accuracy(scored):
    found = numbers(scored, "choice")
    # The first characters of SAID_LETTERS; wrong are d, B for A, a full-width B, B for A, nothing.
    right = [true == said for true, said in zip("ABCDABCDEABC", "ABCdBＢCDEBB_", strict=True)]
    mean, error = mean_and_error(right)
    assert sum(right) == 7
    for metric in ("acc", "score"):
        assert found[f"{metric},none"] == close(mean)
        assert found[f"{metric}_stderr,none"] == close(error)


def test_likely_letters_are_accuracy(scored):
    found = numbers(scored, "choice_ll")
    right = [np.argmax(doc["likelihoods"]) == doc["gold"] for doc in DOCUMENTS["choice_ll"]]
    assert 0 < sum(right) < 12
    assert found["acc,none"] == found["score,none"] == close(sum(right) / 12)


def test_numbers_are_accuracy(scored):
    found = numbers(scored, "number")
    right = [last_number(first_line(said)) == float(true) for true, said in SAID_NUMBERS]
    assert right == [1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert found["acc,none"] == found["score,none"] == close(7 / 12)


SCORED_BY = {
    "translation": ["chrf++", "chrf++_stderr", "score", "score_stderr"],
    "title": ["rouge_l", "score"],
    "label": ["acc", "score", "f1", "f1_stderr"],
    "label_ll": ["acc", "score", "acc_norm", "f1", "f1_stderr"],
    "choice": ["acc", "score"],
    "choice_ll": ["acc", "score"],
    "number": ["acc", "score"],
}


def test_every_task_is_scored_as_one_of_these_kinds():
    templates = {
        kind: load_merged([tasks_dir() / name for name in names])
        for kind, names in TEMPLATES.items()
    }
    kind_of = {config["process_results"]: kind for kind, config in templates.items()}
    assert len(kind_of) == len(TEMPLATES)
    seen: dict[str, int] = dict.fromkeys(TEMPLATES, 0)
    for file in tasks_dir().glob("**/trimix_*.yaml"):
        if file.parent.name in ("demo", "groups"):
            continue
        config = load_yaml(file)
        kind = kind_of[config["process_results"]]
        seen[kind] += 1
        assert config["metric_list"] == templates[kind]["metric_list"], file.name
        assert [metric["metric"] for metric in config["metric_list"]] == SCORED_BY[kind]
    assert min(seen.values()) >= 8, seen


def load_merged(files) -> dict:
    merged: dict = {}
    for file in files:
        merged.update(load_yaml(file))
    return merged


# ---------------------------------------------------------------- words, by hand

CASES = {
    # A tsheg (་ U+0F0B) and a shad (། U+0F0D) are punctuation, so syllables are words.
    # Common: བོད མཚན བྱང, 3 of 5 and 5.
    "Tibetan": (
        "བོད་སྐད་ཀྱི་མཚན་བྱང་།",
        "བོད་ཡིག་གི་མཚན་བྱང་།",
        ["བོད", "སྐད", "ཀྱི", "མཚན", "བྱང"],
        ["བོད", "ཡིག", "གི", "མཚན", "བྱང"],
        3 / 5,
    ),
    # The Arabic comma (، U+060C) and question mark (؟ U+061F) go. 2 of 2 said in 3: 2·⅔·1/(⅔+1).
    "Uyghur": (
        "ياخشىمۇسىز، دۇنيا!",
        "ياخشىمۇسىز دۇنيا، قانداق؟",
        ["ياخشىمۇسىز", "دۇنيا"],
        ["ياخشىمۇسىز", "دۇنيا", "قانداق"],
        4 / 5,
    ),
    # The high hamza (U+0674) is a letter: the word without it is another one. 1 of 2 and 2.
    "Kazakh": (
        "\u0674بىر كىتاپ؛",
        "بىر كىتاپ",
        ["\u0674بىر", "كىتاپ"],
        ["بىر", "كىتاپ"],
        1 / 2,
    ),
    # The narrow space (U+202F) before a suffix is a space. Variation selectors are marks, so they
    # stay and part words that look nearly the same: 2 of 3 and 3. ᠂ and ᠃ are punctuation.
    "Mongolian": (
        "ᠮᠣᠩᠭᠣᠯ\u202fᠤᠨ᠂ ᠪᠢᠴᠢᠭ\u180c᠃",
        "ᠮᠣᠩᠭᠣᠯ ᠤᠨ ᠪᠢᠴᠢᠭ",
        ["ᠮᠣᠩᠭᠣᠯ", "ᠤᠨ", "ᠪᠢᠴᠢᠭ\u180c"],
        ["ᠮᠣᠩᠭᠣᠯ", "ᠤᠨ", "ᠪᠢᠴᠢᠭ"],
        2 / 3,
    ),
    # All three variation selectors stay: three words for one letter. 1 of 3 and 3.
    "Mongolian variants": (
        "ᠭ\u180b ᠭ\u180c ᠭ\u180d",
        "ᠭ ᠭ ᠭ\u180d",
        ["ᠭ\u180b", "ᠭ\u180c", "ᠭ\u180d"],
        ["ᠭ", "ᠭ", "ᠭ\u180d"],
        1 / 3,
    ),
    # The vowel separator (U+180E) is of category Cf: it goes, and what it parts is one word.
    "Mongolian separator": ("ᠪᠠᠢᠨ\u180eᠠ", "ᠪᠠᠢᠨᠠ", ["ᠪᠠᠢᠨᠠ"], ["ᠪᠠᠢᠨᠠ"], 1.0),
    # Vowel signs stay with their letters; the danda (। U+0964) goes. 1 of 2 and 3: 2·⅓·½/(⅓+½).
    "Bengali": (
        "বাংলা ভাষা।",
        "বাংলা ভাষার শিরোনাম",
        ["বাংলা", "ভাষা"],
        ["বাংলা", "ভাষার", "শিরোনাম"],
        2 / 5,
    ),
    # Order counts: தமிழ் செய்திகள் is common, or இன்று alone. 2 of 3 and 3.
    "Tamil": (
        "தமிழ் செய்திகள் இன்று",
        "இன்று தமிழ் செய்திகள்",
        ["தமிழ்", "செய்திகள்", "இன்று"],
        ["இன்று", "தமிழ்", "செய்திகள்"],
        2 / 3,
    ),
    # Quotes, a hyphen and a comma cut: all 3 of 3 and 3.
    "Telugu": (
        "“తెలుగు-భాష” చరిత్ర",
        "తెలుగు, భాష: చరిత్ర.",
        ["తెలుగు", "భాష", "చరిత్ర"],
        ["తెలుగు", "భాష", "చరిత్ర"],
        1.0,
    ),
    # A virama (U+0B4D) joins and does not cut: କ୍ଷେତ୍ର is one word, and not କ୍ଷେତ. 1 of 2 and 2.
    "Odia": (
        "ଓଡ଼ିଆ କ୍ଷେତ୍ର",
        "ଓଡ଼ିଆ କ୍ଷେତ",
        ["ଓଡ଼ିଆ", "କ୍ଷେତ୍ର"],
        ["ଓଡ଼ିଆ", "କ୍ଷେତ"],
        1 / 2,
    ),
    # Joiners (U+200D, U+200C), a soft hyphen (U+00AD) and a byte order mark are Cf and go.
    "joiners": (
        "ক্\u200dষ ক্\u200cষ \ufeffab\u00adc",
        "ক্ষ ক্ষ abc",
        ["ক্ষ", "ক্ষ", "abc"],
        ["ক্ষ", "ক্ষ", "abc"],
        1.0,
    ),
    # Digits of any script are cut from letters; those of two scripts are not the same. 3 of 6, 6.
    "digits": (
        "༢༠༢༤ལོ ১৫টি ᠑᠒ᠣᠨ",
        "2024ལོ 15টি 12ᠣᠨ",
        ["༢༠༢༤", "ལོ", "১৫", "টি", "᠑᠒", "ᠣᠨ"],
        ["2024", "ལོ", "15", "টি", "12", "ᠣᠨ"],
        1 / 2,
    ),
    # Chinese characters stand alone, whatever is next to them. 3 of 4 and 4.
    "Chinese": (
        "藏语བོད་ཡིག",
        "藏文བོད་ཡིག",
        ["藏", "语", "བོད", "ཡིག"],
        ["藏", "文", "བོད", "ཡིག"],
        3 / 4,
    ),
    # The same in all blocks of them, rare ones and those of compatibility included; two of each,
    # since one alone is cut off by its neighbours. 8 of 10 and 8: 2·1·⅘/(1+⅘).
    "rare Chinese": (
        "㐀㐀\uf900\uf900𠀀𠀀𪜀𪜀\U0002f800\U0002f800",
        "㐀㐀\uf900\uf900 𠀀𠀀、\U0002f800\U0002f800",
        list("㐀㐀\uf900\uf900𠀀𠀀𪜀𪜀\U0002f800\U0002f800"),
        list("㐀㐀\uf900\uf900𠀀𠀀\U0002f800\U0002f800"),
        8 / 9,
    ),
    # What stands for bytes that are no character (U+FFFD) goes, as do characters of control.
    "broken": ("བ\ufffdོད a\x00b\x7f", "བོད ab\ufffd", ["བོད", "ab"], ["བོད", "ab"], 1.0),
    # But a tab or a line end is a space.
    "tab": ("བོད\tཡིག\rདེབ", "བོད་ཡིག་དེབ", ["བོད", "ཡིག", "དེབ"], None, 1.0),
    # A full stop cuts within a number, too. 5 of 6 and 5: 2·1·⅚/(1+⅚).
    "sum": (
        "5+19.2=24.2元",
        "5 19 2 24 2",
        ["5", "19", "2", "24", "2", "元"],
        ["5", "19", "2", "24", "2"],
        10 / 11,
    ),
    # Symbols of ASCII count as punctuation, though Unicode says otherwise. 3 of 9, 3: 2·1·⅓/(1+⅓).
    "symbols": ("a$b+c<d=e>f^g`h|i~", "a b c", list("abcdefghi"), list("abc"), 1 / 2),
    # Other symbols are words: a € is cut from its number. 1 of 2 and 2.
    "currency": ("€5", "$5€", ["€", "5"], ["5", "€"], 1 / 2),
    "case": ("The WHO’s Report", "the who S REPORT", ["the", "who", "s", "report"], None, 1.0),
    "no answer": ("བོད་ཡིག", "", ["བོད", "ཡིག"], [], 0.0),
    "only punctuation": ("བོད་ཡིག", "།༎་ ؟، ᠃ । … $", ["བོད", "ཡིག"], [], 0.0),
    "nothing in common": ("བོད", "ཡིག", ["བོད"], ["ཡིག"], 0.0),
    # Three times what is wanted once: 1 of 1 and 3, 2·⅓·1/(⅓+1).
    "repetition": ("བོད།", "བོད་བོད་བོད།", ["བོད"], ["བོད"] * 3, 1 / 2),
}


@pytest.mark.parametrize("case", CASES)
def test_rouge_l_by_hand(case):
    true, said, true_words, said_words, expected = CASES[case]
    tokenizer = rouge.RougeTokenizer()
    assert tokenizer.tokenize(true) == true_words
    assert tokenizer.tokenize(said) == (true_words if said_words is None else said_words)
    assert rouge.rouge_l(true, said) == close(expected)
    assert answers.title({"title": true}, [f" {said}\nmore"]) == {
        "rouge_l": close(expected),
        "score": close(expected),
    }


@needs_pyonmttok
@pytest.mark.parametrize("case", CASES)
def test_words_by_hand_are_those_of_the_description(case):
    true, said, *_ = CASES[case]
    for text in (true, said):
        assert words(text) == rouge.RougeTokenizer().tokenize(text)


ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text(
    # What the scripts at hand are made of, and what OpenNMT takes for its own marks.
    st.sampled_from(
        "a1 ་།བ\u0674،ب\u180b\u180c\u180d\u180e\u202fᠮ।\u09cdকத\u0bcdଓ\u200c\u200d字༢$|"
        "￭￨｟｠▁\ud800\ufffd\x85"
    )
)


@settings(max_examples=60, deadline=None, derandomize=True)
@example("\ud800", "\udfff་x")
@given(ANY_TEXT, ANY_TEXT)
def test_any_text_is_cut_and_compared(a, b):
    tokenizer = rouge.RougeTokenizer()
    for text in (a, b):
        cut = tokenizer.tokenize(text)
        assert all(word.split() == [word] for word in cut)  # no empty ones, no space within
        assert rouge.rouge_l(text, text) == (1 if cut else 0)
    value = rouge.rouge_l(a, b)
    assert 0 <= value <= 1
    assert rouge.rouge_l(b, a) == close(value)
    assert value == close(f_measure(tokenizer.tokenize(a), tokenizer.tokenize(b)))


# ---------------------------------------------------------------- single answers


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("B", 1),
        (" B", 1),
        ("\nB", 1),
        ("\r\n B\r\nA", 1),
        ("B\nA", 1),
        ("B. བོད", 1),
        ("B)", 1),
        ("Because", 1),  # the authors' rule looks no further than the first character
        ("b", 0),
        ("A", 0),
        ("A\nB", 0),
        ("AB", 0),
        ("(B)", 0),
        ("答案B", 0),
        ("Ｂ", 0),  # full-width
        ("В", 0),  # Cyrillic
        ("", 0),
        ("\n", 0),
        ("F", 0),
    ],
)
def test_choice(said, right):
    found = answers.choice({"answer": "B"}, [said])
    assert found == {"acc": right, "score": right}
    assert all(type(value) is float for value in found.values())


def test_beyond_e_the_whole_line_is_the_answer():
    assert answers.choice({"answer": "F"}, ["F"])["acc"] == 1
    assert answers.choice({"answer": "F"}, ["F."])["acc"] == 0
    assert answers.choice({"answer": "E"}, ["E."])["acc"] == 1


@pytest.mark.parametrize(
    ("gold", "said", "right"),
    [
        ("sports", "sports", 1),
        ("sports", " Sports ", 1),
        ("sports", "\nSPORTS\nText: x", 1),
        ("Sports", "sports", 1),
        ("science/technology", "Science/Technology", 1),
        ("经济", " 经济\n", 1),
        ("sports", "sport", 0),
        ("sports", "sports.", 0),
        ("sports", "sports, health", 0),
        ("sports", "health\nsports", 0),
        ("sports", "", 0),
    ],
)
def test_label(gold, said, right):
    found = answers.label({"label": gold}, [said])
    assert (found["acc"], found["score"]) == (right, right)
    true, predicted = found["f1"]
    assert (true == predicted) == bool(right)
    assert found["f1"] == found["f1_stderr"]
    assert list(found).index("f1_stderr") > list(found).index("f1")  # lm-eval writes N/A between


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("42", 42),
        ("1,234.50.", 1234.5),
        ("1,234,567", 1234567),
        ("5+19.2=24.2元", 24.2),
        ("x = 3.", 3),
        ("3..", 3),
        ("3.0", 3),
        ("007", 7),
        (".5", 5),
        ("1.2.3", 3),
        ("1e5", 5),
        ("-5", 5),  # signs are ignored: no answer of the benchmark has one
        ("2^10", 10),
        ("10%", 10),
        ("3, 4", 4),
        ("3,4", 34),
        ("༡༢ ཡིན།", 12),
        ("༡༢.༥", 12.5),
        ("১,২৩৪", 1234),
        ("١٢", 12),
        ("᠑᠒", 12),
        ("１２", 12),
        ("x²", None),  # superscripts and fractions are no digits
        ("½", None),
        ("十二", None),
        ("none.", None),
        ("", None),
        (".", None),
    ],
)
def test_last_number(said, expected):
    assert answers.last_number(said) == expected
    assert last_number(said) == expected
    for gold in (expected if expected is not None else 1, -1):
        right = gold == expected
        assert answers.number({"answer": str(gold)}, [f"\n {said}\n99"])["score"] == right


def test_a_number_is_compared_as_a_number():
    assert answers.number({"answer": "24.20"}, ["It is 24.2."]) == {"acc": 1, "score": 1}
    assert answers.number({"answer": "24"}, ["24.0"]) == {"acc": 1, "score": 1}
    assert answers.number({"answer": "24"}, ["24.01"]) == {"acc": 0, "score": 0}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("0123456789.,-+= x༢৩\n元")))
def test_last_number_of_any_line(text):
    assert answers.last_number(text) == last_number(text)


@pytest.mark.parametrize(
    ("values", "gold", "right"),
    [
        ([-1.0, -2.0, -3.0], 0, 1),
        ([-3.0, -2.0, -1.0], 0, 0),
        ([-3.0, -2.0, -1.0], 2, 1),
        ([-2.0, -1.0, -1.0], 1, 1),  # the first of equals, as numpy and so lm-eval
        ([-2.0, -1.0, -1.0], 2, 0),
        ([float("-inf"), -1e9, float("-inf")], 1, 1),
    ],
)
def test_the_likeliest_letter(values, gold, right):
    # What greedy decoding would say has no say.
    results = [(value, i == 0) for i, value in enumerate(values)]
    assert answers.choice_ll({"gold": gold}, results) == {"acc": right, "score": right}


def test_the_likeliest_label_and_the_likeliest_per_character():
    doc = {"labels": ["law", "education"], "label": "education", "gold": 1}
    # In total law, with -3 > -6; per character education, with -3/3 < -6/9.
    found = answers.label_ll(doc, [(-3.0, True), (-6.0, False)])
    pair = ("education", "law")
    assert found == {"acc": 0, "score": 0, "acc_norm": 1, "f1": pair, "f1_stderr": pair}
    # Characters, not bytes: per character བོད has -1, per byte -1/3, and x, y -0.5.
    doc = {"labels": ["བོད", "xy"], "label": "xy", "gold": 1}
    found = answers.label_ll(doc, [(-3.0, False), (-1.0, False)])
    assert (found["acc"], found["acc_norm"], found["score"]) == (1, 1, 1)
    # A tie per character goes to the first, too.
    doc = {"labels": ["a", "bb"], "label": "bb", "gold": 1}
    found = answers.label_ll(doc, [(-1.0, False), (-2.0, False)])
    assert (found["acc"], found["acc_norm"]) == (0, 0)


def test_translations_are_collected_and_scored_together():
    found = answers.translation({"target": "Good DAY"}, ["\n good day \nmore"])
    assert set(found.values()) == {("Good DAY", "good day")}
    names = list(found)
    for metric in ("chrf++", "score"):
        assert names.index(f"{metric}_stderr") > names.index(metric)
    assert metrics.chrf_pp([("Good DAY", "good day")]) == close(100)
    assert metrics.chrf_pp([("Good DAY", "")]) == 0
    assert metrics.chrf_pp_score([("Good DAY", "good day")]) == close(1)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("a", "a"), ("b", "b")], 1),
        ([("a", "b"), ("b", "a")], 0),
        # a: 1 hit, said 2, true 1: 2/3; b: 1 hit, said 1, true 2: 2/3.
        ([("a", "a"), ("b", "b"), ("b", "a")], 2 / 3),
        # What is no label is nobody's wrong guess: a 2·1/(1 + 2) twice, b 0 once.
        ([("a", "a"), ("a", "x"), ("b", "y")], (2 * 2 / 3) / 3),
        ([("a", "")], 0),
        ([("a", "a")], 1),
        # c is said, but never true: it has no weight. a: 2·1/(1 + 2).
        ([("a", "a"), ("a", "c")], 2 / 3),
    ],
)
def test_weighted_f1_by_hand(pairs, expected):
    assert metrics.weighted_f1(pairs) == close(expected)
    assert weighted_f1(pairs) == close(expected)


SAYS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SAYS)
def test_weighted_f1_is_that_of_the_definition(pairs):
    assert metrics.weighted_f1(pairs) == close(weighted_f1(pairs))


# ---------------------------------------------------------------- standard errors


def naive_error(pairs, score, resamples: int) -> float:
    """The bootstrap as a textbook has it: whole documents drawn, all scored anew."""
    generator = np.random.default_rng(0)
    scores = []
    for _ in range(resamples):
        drawn = generator.integers(len(pairs), size=len(pairs))
        scores.append(score([pairs[i] for i in drawn]))
    return float(np.std(scores, ddof=1))


TRANSLATED = [(true, first_line(said)) for true, said in TEXTS]
LABELLED = [(true, first_line(said).lower()) for true, said in SAID_LABELS]


def test_error_of_chrf_pp_is_that_of_a_naive_bootstrap(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 150)
    found = metrics.chrf_pp_stderr(TRANSLATED)
    assert found == close(naive_error(TRANSLATED, chrf_pp, 150))
    assert metrics.chrf_pp_score_stderr(TRANSLATED) == close(found / 100)


def test_error_of_f1_is_that_of_a_naive_bootstrap():
    # A draw may lack a label; then the definition weighs the others only, and so must we.
    found = metrics.weighted_f1_stderr(LABELLED)
    assert found == close(naive_error(LABELLED, weighted_f1, metrics.RESAMPLES))


def test_errors_are_the_same_each_time():
    for error in (metrics.chrf_pp_stderr, metrics.weighted_f1_stderr):
        pairs = TRANSLATED if error is metrics.chrf_pp_stderr else LABELLED
        first = error(pairs)
        np.random.seed(7)
        random.seed(7)
        assert error(list(pairs)) == first > 0


def test_errors_agree_with_theory():
    """Where theory is easy; 1,000 resamples leave an error of 1/√2000, a fortieth."""
    right, documents = 140, 400
    share = right / documents
    binomial = math.sqrt(share * (1 - share) / documents)
    # Words of one length, either right or with nothing in common: chrF++ is their share.
    pairs = [("bcdefg", "bcdefg")] * right + [("bcdefg", "qrstuv")] * (documents - right)
    assert metrics.chrf_pp_score(pairs) == close(share)
    assert metrics.chrf_pp_score_stderr(pairs) == pytest.approx(binomial, rel=0.1)
    # One label, found or not: precision 1, recall r, F1 = 2r/(1 + r), so its slope is 2/(1 + r)².
    pairs = [("a", "a")] * right + [("a", "x")] * (documents - right)
    assert metrics.weighted_f1(pairs) == close(2 * share / (1 + share))
    slope = 2 / (1 + share) ** 2
    assert metrics.weighted_f1_stderr(pairs) == pytest.approx(slope * binomial, rel=0.1)


def test_one_document_has_no_error():
    assert metrics.chrf_pp_stderr(TRANSLATED[:1]) == "N/A"
    assert metrics.chrf_pp_score_stderr(TRANSLATED[:1]) == "N/A"
    assert metrics.weighted_f1_stderr(LABELLED[:1]) == "N/A"


def test_lm_eval_reports_the_errors_where_it_looks_for_them(scored):
    translation, label = numbers(scored, "translation"), numbers(scored, "label")
    assert translation["chrf++_stderr,none"] == close(metrics.chrf_pp_stderr(TRANSLATED))
    assert translation["score_stderr,none"] == close(metrics.chrf_pp_score_stderr(TRANSLATED))
    assert label["f1_stderr,none"] == close(metrics.weighted_f1_stderr(LABELLED))
    for found in (translation["chrf++_stderr,none"], label["f1_stderr,none"]):
        assert isinstance(found, float) and found > 0
    assert numbers(scored, "label_ll")["f1_stderr,none"] > 0
    # The table that users see has the error beside its metric, not on a line of its own.
    table = make_table(scored("t_translation"))
    (line,) = [line for line in table.splitlines() if "chrf++" in line]
    assert f"{translation['chrf++_stderr,none']:.4f}" in line
    assert "_stderr" not in table


@pytest.mark.parametrize("kind", ["translation", "label", "choice"])
def test_lm_eval_reports_no_error_for_one_document(scored, kind):
    found = scored(f"t_{kind}_one")["results"][f"t_{kind}_one"]
    errors = {name: value for name, value in found.items() if "_stderr" in name}
    assert errors and set(errors.values()) == {"N/A"}


def test_a_group_is_the_unweighted_mean_with_its_error(scored):
    results = scored("t_group")["results"]
    tasks = [results[f"t_{kind}"] for kind in TEMPLATES]
    scores = [task["score,none"] for task in tasks]
    errors = [task["score_stderr,none"] for task in tasks]
    group = results["t_group"]
    assert group["score,none"] == close(sum(scores) / 7)
    assert group["score_stderr,none"] == close(math.sqrt(sum(e * e for e in errors)) / 7)
