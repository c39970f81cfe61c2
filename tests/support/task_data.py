"""Benchmark files built on disk: MiLiC-Eval's schema with sentences of our own, real FLORES rows.

No row of MiLiC-Eval is here; its authors gate it against contamination. Every language has a dozen
short sentences written for this file, and a row is put together from them by its number. Rows of
SIB-200 and of the Bengali Belebele are real: excerpts in `tests/data`, with their licence.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DATA = Path(__file__).parent.parent / "data"
LANGUAGES = ("bo", "ug", "kk", "mn")
Row = dict[str, Any]

#: Rows in each of train_1 to train_3, in dev (a guess for the last three) and in test.
SIZES = {
    "response_selection": (20, 40, 407),
    "reading_comprehension": (10, 20, 200),
    "text_classification": (16, 48, 504),
    "title_generation": (20, 40, 900),
    "math": (10, 20, 200),
    "translation_dialogue": (20, 40, 673),
    "vocabulary": (20, 40, 900),
    "text_classification_sentence": (10, 30, 432),
    "translation_article": (20, 40, 912),
}
#: Folders on the Hub, and in the archive of TriMix's authors (what it has).
FOLDERS = {
    "hub": {task: task for task in SIZES} | {"text_classification": "text_classification_passage"},
    "authors": {task: task for task in list(SIZES)[:6]}
    | {"title_generation": "title_generation_200"},
}
#: What the splits are made with: rows of two sentences, so many places apart.
APART = {"train_1": 1, "train_2": 2, "train_3": 3, "test": 4, "dev": 5}

# ------------------------------------------------------------------------------------- sentences

ENGLISH = (
    "The sky is blue.",
    "The water is cold.",
    "This is a book.",
    "I am a student.",
    "The horse runs fast.",
    "The mountain is high.",
    "The tea is hot.",
    "My home is far away.",
    "The child fell asleep.",
    "It snowed today.",
    "The moon is bright.",
    "The river is long.",
)
CHINESE = (
    "天空是蓝色的。",
    "水很凉。",
    "这是一本书。",
    "我是学生。",
    "马跑得快。",
    "山很高。",
    "茶很热。",
    "我的家很远。",
    "孩子睡着了。",
    "今天下雪了。",
    "月亮很亮。",
    "河很长。",
)
NOUNS = ("sky", "water", "book", "student", "horse", "mountain", "tea", "home", "child", "snow")


class Language(NamedTuple):
    """What rows of one language are made of.

    Attributes:
        sentences: Translations of `ENGLISH`, in its order.
        nouns: Translations of `NOUNS`, in its order.
        topics: A sentence for each label of its passages, the labels as prompts list them.
        question: About a dialogue.
        problem: With holes for two numbers, which are to be added.
    """

    sentences: tuple[str, ...]
    nouns: tuple[str, ...]
    topics: dict[str, str]
    question: str
    problem: str


TIBETAN = Language(
    sentences=(
        "གནམ་སྔོན་པོ་རེད།",
        "ཆུ་གྲང་མོ་རེད།",
        "འདི་དེབ་ཅིག་རེད།",
        "ང་སློབ་མ་ཡིན།",
        "རྟ་མགྱོགས་པོ་རྒྱུག་གི་འདུག",
        "རི་མཐོ་པོ་རེད།",
        "ཇ་ཚ་པོ་འདུག",
        "ངའི་ཁྱིམ་ཐག་རིང་པོ་རེད།",
        "ཕྲུ་གུ་ཉལ་སོང་།",
        "དེ་རིང་གངས་བབས་སོང་།",
        "ཟླ་བ་གསལ་པོ་འདུག",
        "ཆུ་བོ་རིང་པོ་རེད།",
    ),
    nouns=("གནམ", "ཆུ", "དེབ", "སློབ་མ", "རྟ", "རི", "ཇ", "ཁྱིམ", "ཕྲུ་གུ", "གངས"),
    topics={
        "education": "སློབ་གྲྭར་སློབ་མ་མང་པོ་ཡོད།",
        "economy": "ཁྲོམ་ནས་འབྲས་ཉོས་པ་ཡིན།",
        "law": "ཁྲིམས་ལ་བརྩི་དགོས།",
        "travel": "ང་ལྷ་ས་ལ་འགྲོ་གི་ཡིན།",
    },
    question="ཁོང་ཚོས་ག་རེའི་སྐོར་བཤད་པ་རེད།",
    problem="ང་ལ་དེབ་{}ཡོད། ད་དུང་དེབ་{}ཉོས། ཁྱོན་དེབ་ག་ཚོད་ཡོད།",
)
UYGHUR = Language(
    sentences=(
        "ئاسمان كۆك.",
        "سۇ سوغۇق.",
        "بۇ بىر كىتاب.",
        "مەن ئوقۇغۇچى.",
        "ئات تېز يۈگۈرەيدۇ.",
        "تاغ ئېگىز.",
        "چاي قىزىق.",
        "ئۆيۈم يىراق.",
        "بالا ئۇخلاپ قالدى.",
        "بۈگۈن قار ياغدى.",
        "ئاي يورۇق.",
        "دەريا ئۇزۇن.",
    ),
    nouns=("ئاسمان", "سۇ", "كىتاب", "ئوقۇغۇچى", "ئات", "تاغ", "چاي", "ئۆي", "بالا", "قار"),
    topics={
        "travel": "مەن قەشقەرگە بارىمەن.",
        "livelihood": "كوچىدا يېڭى ئۆيلەر بار.",
        "health": "ھەر كۈنى سۇ ئىچىڭ.",
        "sports": "بالىلار توپ ئوينايدۇ.",
    },
    question="ئۇلار نېمە توغرىسىدا سۆزلەۋاتىدۇ؟",
    problem="مەندە {} كىتاب بار. يەنە {} كىتاب ئالدىم. جەمئىي قانچە كىتاب بار؟",
)
KAZAKH = Language(
    sentences=(
        "اسپان كوك.",
        "سۋ سۋىق.",
        "بۇل كىتاپ.",
        "مەن وقۋشىمىن.",
        "ات جىلدام جۇگىرەدى.",
        "تاۋ بيىك.",
        "شاي ىستىق.",
        "ٴۇيىم الىس.",
        "بالا ۇيىقتاپ قالدى.",
        "بۇگىن قار جاۋدى.",
        "اي جارىق.",
        "وزەن ۇزىن.",
    ),
    nouns=("اسپان", "سۋ", "كىتاپ", "وقۋشى", "ات", "تاۋ", "شاي", "ٴۇي", "بالا", "قار"),
    topics={
        "economy": "بازاردا نان ارزان.",
        "culture": "اپام دومبىرا تارتادى.",
        "politics": "بۇگىن جينالىس اشىلدى.",
        "geography": "التاي ۇلكەن تاۋ.",
    },
    question="ولار نە تۋرالى سويلەسىپ وتىر؟",
    problem="مەندە {} كىتاپ بار. تاعى {} كىتاپ الدىم. بارلىعى قانشا كىتاپ بار؟",
)
MONGOLIAN = Language(
    sentences=(
        "ᠲᠩᠷᠢ ᠬᠥᠬᠡ ᠪᠠᠢᠨ᠎ᠠ᠃",
        "ᠤᠰᠤ ᠬᠦᠢᠲᠡᠨ ᠪᠠᠢᠨ᠎ᠠ᠃",
        "ᠡᠨᠡ ᠪᠣᠯ ᠨᠣᠮ᠃",
        "ᠪᠢ ᠰᠤᠷᠤᠭᠴᠢ᠃",
        "ᠮᠣᠷᠢ ᠬᠤᠷᠳᠤᠨ ᠭᠦᠶᠦᠨ᠎ᠡ᠃",
        "ᠠᠭᠤᠯᠠ ᠥᠨᠳᠦᠷ᠃",
        "ᠴᠠᠢ ᠬᠠᠯᠠᠭᠤᠨ ᠪᠠᠢᠨ᠎ᠠ᠃",
        "ᠮᠢᠨᠦ ᠭᠡᠷ ᠬᠣᠯᠠ᠃",
        "ᠬᠡᠦᠬᠡᠳ ᠤᠨᠲᠠᠪᠠ᠃",
        "ᠥᠨᠥᠳᠥᠷ ᠴᠠᠰᠤ ᠣᠷᠣᠪᠠ᠃",
        "ᠰᠠᠷᠠ ᠭᠡᠷᠡᠯᠲᠡᠢ᠃",
        "ᠮᠥᠷᠡᠨ ᠤᠷᠲᠤ᠃",
    ),
    nouns=("ᠲᠩᠷᠢ", "ᠤᠰᠤ", "ᠨᠣᠮ", "ᠰᠤᠷᠤᠭᠴᠢ", "ᠮᠣᠷᠢ", "ᠠᠭᠤᠯᠠ", "ᠴᠠᠢ", "ᠭᠡᠷ", "ᠬᠡᠦᠬᠡᠳ", "ᠴᠠᠰᠤ"),
    topics={
        "education": "ᠰᠤᠷᠭᠠᠭᠤᠯᠢ ᠳᠤ ᠪᠠᠭᠰᠢ ᠪᠠᠢᠨ᠎ᠠ᠃",
        "health": "ᠡᠳᠦᠷ ᠪᠦᠷᠢ ᠤᠰᠤ ᠤᠤᠭᠤᠭᠠᠷᠠᠢ᠃",
        "politics": "ᠥᠨᠥᠳᠥᠷ ᠬᠤᠷᠠᠯ ᠨᠡᠭᠡᠭᠡᠪᠡ᠃",
        "technology": "ᠡᠨᠡ ᠪᠣᠯ ᠰᠢᠨ᠎ᠡ ᠮᠠᠰᠢᠨ᠃",
    },
    question="ᠲᠡᠳᠡ ᠶᠠᠭᠤ ᠶᠠᠷᠢᠵᠤ ᠪᠠᠢᠨ᠎ᠠ ᠪᠤᠢ ?",
    problem="ᠨᠠᠳᠠ ᠳᠤ {} ᠨᠣᠮ ᠪᠠᠢᠨ᠎ᠠ᠃ ᠪᠠᠰᠠ {} ᠨᠣᠮ ᠠᠪᠤᠪᠠ᠃ ᠪᠦᠬᠦᠳᠡ ᠬᠡᠳᠦᠨ ᠨᠣᠮ ᠪᠤᠢ ?",
)
SPOKEN = dict(zip(LANGUAGES, (TIBETAN, UYGHUR, KAZAKH, MONGOLIAN), strict=True))

#: The labels in Chinese; sentences have four of their own.
LABELS_ZH = {
    "education": "教育",
    "economy": "经济",
    "law": "法律",
    "travel": "旅游",
    "livelihood": "民生",
    "health": "健康",
    "sports": "体育",
    "culture": "文化",
    "politics": "政治",
    "geography": "地理",
    "technology": "科技",
    "nature": "自然",
    "things": "物品",
    "people": "人物",
    "animals": "动物",
}
#: What each of the twelve sentences is about.
ABOUT = (
    *("nature", "nature", "things", "people", "animals", "nature"),
    *("things", "things", "people", "nature", "nature", "nature"),
)

# ------------------------------------------------------------------------------ rows of MiLiC-Eval


def rows(task: str, language: str, split: str) -> list[Row]:
    """All rows of one file, ``split`` one of `APART`."""
    train, dev, test = SIZES[task]
    made = []
    for number in range({"dev": dev, "test": test}.get(split, train)):
        # Ids are numbers in some languages and texts in others.
        key = number if language in ("bo", "ug") else f"{split}-{number}"
        row = MAKERS[task](SPOKEN[language], language, At(split, number))
        made.append({"id": key, **row})
    return made


class At(NamedTuple):
    """The place of a row, and what it is made of for standing there."""

    split: str
    number: int

    @property
    def apart(self) -> int:
        return APART[self.split]

    def two(self, sentences: tuple[str, ...], glue: str = " ") -> str:
        """Two of twelve sentences; no two rows have the same, since later ones are numbered."""
        first, second = self.number % 12, (self.number + self.apart) % 12
        more = f"{glue}{self.number}" if self.number >= 12 else ""
        return sentences[first] + glue + sentences[second] + more

    def odd(self, text: str) -> str:
        """A text as it is, but in a few rows: longer than any cut, of two lines, or with braces."""
        which = self.number % 50 if self.split == "test" else 0
        if which == 1 or (self.split, self.number) == ("train_2", 0):
            return long_text(text)
        if which == 2:
            return f"{text}\n{text}"
        if which == 3:
            return f" {{{{ 7 * 7 }}}} {text} {{% raw %}} {{# no #}} [1] "
        return text

    def some(self, texts: tuple[str, ...], count: int) -> list[str]:
        """A few of the texts, all different."""
        return [texts[(self.number + self.apart + 2 * i) % len(texts)] for i in range(count)]

    def letter(self, count: int) -> str:
        return "ABCD"[(self.number * 3 + self.apart) % count]


def long_text(text: str) -> str:
    """1,100 characters, of which the 512th and the 1024th are ``<`` and those after them ``>``."""
    filled = list(f"{text} " * (1 + 1100 // len(text)))[:1100]
    for last in (512, 1024):
        filled[last - 1], filled[last] = "<", ">"
    return "".join(filled)


def _response(spoken: Language, _: str, at: At) -> Row:
    said = [at.odd(at.two(spoken.sentences)), *at.some(spoken.nouns, at.number % 3)]
    return {"context": said, "options": at.some(spoken.sentences, 4), "answer": at.letter(4)}


def _comprehension(spoken: Language, _: str, at: At) -> Row:
    options = at.some(spoken.nouns, 3 + at.number % 2)
    return {
        "context": [at.odd(at.two(spoken.sentences)), spoken.sentences[at.number % 7]],
        "question": spoken.question,
        "options": options,
        "answer": at.letter(len(options)),
    }


def _passage(spoken: Language, _: str, at: At) -> Row:
    # Each label four times in a file of exemplars, in an order of no use.
    label = list(spoken.topics)[(at.number * 3 + at.number // 4) % 4]
    return {
        "text": at.odd(f"{spoken.topics[label]} {at.two(spoken.sentences)}"),
        "label": {"zh": LABELS_ZH[label], "en": label},
        "source": f"{at.split} {at.number}",
    }


def _sentence(spoken: Language, _: str, at: At) -> Row:
    label = ABOUT[at.number % 12]
    text = at.odd(at.two(spoken.sentences))
    return {"text": text, "label": {"zh": LABELS_ZH[label], "en": label}}


def _article(spoken: Language, language: str, at: At) -> Row:
    more = [str(at.number)] if at.number >= 10 else []
    return {
        "title": " ".join(at.some(spoken.nouns, 2) + more),
        "content": at.odd(at.two(spoken.sentences)),
        "url": f"https://example.org/{language}/{at.split}/{at.number}",
    }


def _problem(spoken: Language, _: str, at: At) -> Row:
    have, more = at.number + 2, at.apart + 3
    total = have + more
    row = {"question": at.odd(spoken.problem.format(have, more)), "answer": str(total)}
    if at.split.startswith("train"):
        row["cot"] = {
            "zh": f"我有{have}本书，又买了{more}本，{have} + {more} = {total}。答案是{total}。",
            "en": f"I have {have} books and buy {more}: {have} + {more} = {total}. "
            f"The answer is {total}.",
        }
    return row


def _translation(spoken: Language, language: str, at: At) -> Row:
    texts = {
        "zh": at.odd(at.two(CHINESE, "")),
        "en": at.odd(at.two(ENGLISH)),
        language: at.odd(at.two(spoken.sentences)),
    }
    # Of one line each: an answer ends at the first line break.
    return {code: text.replace("\n", " ") for code, text in texts.items()}


def _word(spoken: Language, _: str, at: At) -> Row:
    first, second = at.number % 10, (at.number + at.apart) % 10
    more = f" {at.number}" if at.number >= 10 else ""
    turn = at.number % 4
    options = [NOUNS[(first + 3 * i) % 10] for i in (*range(turn, 4), *range(turn))]
    return {
        "word": f"{spoken.nouns[first]} {spoken.nouns[second]}{more}",
        "options": options,
        "answer": "ABCD"[options.index(NOUNS[first])],
    }


MAKERS = {
    "response_selection": _response,
    "reading_comprehension": _comprehension,
    "text_classification": _passage,
    "title_generation": _article,
    "math": _problem,
    "translation_dialogue": _translation,
    "vocabulary": _word,
    "text_classification_sentence": _sentence,
    "translation_article": _translation,
}

# ----------------------------------------------------------------------------- files of MiLiC-Eval


def write_milic(folder: Path, layout: str = "hub") -> Path:
    """Write all files of a release, ``hub`` or ``authors``, and return the folder.

    The authors' has six of the nine tasks, and of the titles the 200 that they drew.
    """
    drawn = drawn_titles() if layout == "authors" else {}
    for task, name in FOLDERS[layout].items():
        for language in LANGUAGES:
            place = folder / name / language
            place.mkdir(parents=True)
            for split in APART:
                made = rows(task, language, split)
                if split == "test" and task == "title_generation":
                    made = drawn.get(language, made)
                text = json.dumps(made, ensure_ascii=False)
                (place / f"{split}.json").write_text(text, encoding="utf-8")
    return folder


def drawn_titles() -> dict[str, list[Row]]:
    """The authors' way: seed Python's own generator once, then draw language after language."""
    before = random.getstate()
    random.seed(0)
    try:
        return {
            code: random.sample(rows("title_generation", code, "test"), 200)
            for code in ("bo", "ug", "kk", "mn")
        }
    finally:
        random.setstate(before)


def write_locked_zip(archive: Path, folder: Path, names: list[str], password: str) -> Path:
    """Pack files of a folder as ``zip -P`` does; Python's own `zipfile` only reads such archives.

    PKWARE's APPNOTE, sections 4.3.7 (local header), 4.3.12 and 4.3.16 (directory), 6.1 (cipher).
    """
    body, directory = b"", b""
    for name in names:
        data, path = (folder / name).read_bytes(), f"data/{name}".encode()
        crc, squeeze = zlib.crc32(data), zlib.compressobj(wbits=-15)
        packed = squeeze.compress(data) + squeeze.flush()
        # Twelve bytes first, the last of which tells the right password from a wrong one.
        locked = bytes(_encrypt(bytes(11) + bytes([crc >> 24]) + packed, password.encode()))
        # Needs version 2.0; locked; deflated; a time and a date; sizes; no extra field.
        numbers = (20, 1, 8, 0, 33, crc, len(locked), len(data), len(path), 0)
        where = len(body)
        body += b"PK\x03\x04" + struct.pack("<5H3L2H", *numbers) + path + locked
        directory += b"PK\x01\x02" + struct.pack("<6H3L2H", 20, *numbers)
        directory += struct.pack("<3H2L", 0, 0, 0, 0, where) + path
    end = struct.pack("<4H2LH", 0, 0, len(names), len(names), len(directory), len(body), 0)
    archive.write_bytes(body + directory + b"PK\x05\x06" + end)
    return archive


def _encrypt(data: bytes, password: bytes) -> Iterator[int]:
    """ZipCrypto: three keys, stepped by every byte of the password and then of the data."""

    def crc(key: int, byte: int) -> int:
        return zlib.crc32(bytes([byte]), key ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    key0, key1, key2 = 0x12345678, 0x23456789, 0x34567890
    for at, byte in enumerate(password + data):
        if at >= len(password):
            mask = (key2 | 2) & 0xFFFF
            yield byte ^ (mask * (mask ^ 1) >> 8 & 0xFF)
        key0 = crc(key0, byte)
        key1 = ((key1 + (key0 & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        key2 = crc(key2, key1 >> 24)


# ------------------------------------------------------------------------- SIB-200 and Belebele

#: Rows in the excerpts.
SIB200_SIZES = {"train": 14, "test": 8}
BELEBELE_SIZE = 24
SIB200 = ("ben_Beng", "tam_Taml", "tel_Telu", "ory_Orya", "bod_Tibt", "uig_Arab")
#: Languages whose rows were not at hand; two sentences for each.
MADE_UP = {
    "kaz_Cyrl": ("Аспан көк.", "Су суық."),
    "khk_Cyrl": ("Тэнгэр хөх.", "Ус хүйтэн."),
    "tam_Taml": ("வானம் நீலம்.", "நீர் குளிர்ச்சி."),
    "tel_Telu": ("ఆకాశం నీలం.", "నీరు చల్లన."),
    "ory_Orya": ("ଆକାଶ ନୀଳ।", "ପାଣି ଥଣ୍ଡା।"),
    "bod_Tibt": TIBETAN.sentences[:2],
    "deu_Latn": ("Der Himmel ist blau.", "Das Wasser ist kalt."),
}
TOPICS = (
    *("science/technology", "travel", "politics", "sports"),
    *("health", "entertainment", "geography"),
)


def write_sib200(folder: Path) -> Path:
    """Write nine languages as on the Hub: six excerpts, three made up."""
    for code in SIB200:
        shutil.copytree(DATA / "sib200" / code, folder / "data" / code)
    for code in ("kaz_Cyrl", "khk_Cyrl", "deu_Latn"):
        (folder / "data" / code).mkdir(parents=True)
        for split, count in SIB200_SIZES.items():
            lines = ["index_id\tcategory\ttext"]
            for i in range(count):
                text = f"{MADE_UP[code][i % 2]} {split} {i}"
                lines.append(f"{i}\t{TOPICS[(i * 3 + i // 7) % 7]}\t{text}")
            path = folder / "data" / code / f"{split}.tsv"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_belebele(folder: Path) -> Path:
    """Write eight languages as on the Hub: an excerpt in Bengali, seven made up."""
    (folder / "data").mkdir(parents=True)
    shutil.copy(DATA / "belebele" / "ben_Beng.jsonl", folder / "data")
    for code in MADE_UP:
        lines = [json.dumps(_question(code, i), ensure_ascii=False) for i in range(BELEBELE_SIZE)]
        text = "\n".join(lines) + "\n"
        (folder / "data" / f"{code}.jsonl").write_text(text, encoding="utf-8")
    return folder


def _question(code: str, number: int) -> Row:
    """A row of Belebele. The second question on a passage comes sixteen rows after the first."""
    first, second = MADE_UP[code]
    return {
        "flores_passage": f"{first} {second} {number % 16}",
        "question": f"{second} {number}?",
        **{f"mc_answer{i}": f"{first} {number + i}" for i in range(1, 5)},
        "correct_answer_num": str(number % 4 + 1),
        "link": "https://example.org",
        "question_number": 1 + number // 16,
    }
