"""The languages of the package's tasks, one line each: codes, names in prompts, benchmarks.

A line added here gives the language its tasks (``python tasks/generate.py`` writes them), its name
in prompts, and its name in reports and in files to submit.
"""

from __future__ import annotations

from typing import NamedTuple

from trimix_lm_eval.utils.errors import TrimixError


class TaskLanguage(NamedTuple):
    """A language that the package has tasks in, or that prompts are in or translate from.

    Attributes:
        english: What English prompts call it.
        chinese: What Chinese prompts call it; empty if no task has such prompts in it.
        milic: Its code in MiLiC-Eval (ISO 639-1); empty if no task of that has it.
        flores: Its code in FLORES-200; empty if no task of the following has it.
        benchmarks: Loaders of the benchmarks over FLORES-200 whose tasks are written for it.
        indic: Whether the groups ``trimix_indic…`` average over it.
    """

    english: str
    chinese: str = ""
    milic: str = ""
    flores: str = ""
    benchmarks: tuple[str, ...] = ()
    indic: bool = False


_BOTH = ("sib200", "belebele")

#: In the order in which groups list them.
LANGUAGES = (
    TaskLanguage("Tibetan", "藏语", "bo", "bod_Tibt", _BOTH),
    TaskLanguage("Uyghur", "维吾尔语", "ug", "uig_Arab", ("sib200",)),
    TaskLanguage("Kazakh", "哈萨克语", "kk", "kaz_Cyrl", _BOTH),
    TaskLanguage("Mongolian", "蒙古语", "mn", "khk_Cyrl", _BOTH),
    TaskLanguage("Bengali", flores="ben_Beng", benchmarks=_BOTH, indic=True),
    TaskLanguage("Tamil", flores="tam_Taml", benchmarks=_BOTH, indic=True),
    TaskLanguage("Telugu", flores="tel_Telu", benchmarks=_BOTH, indic=True),
    TaskLanguage("Odia", flores="ory_Orya", benchmarks=_BOTH, indic=True),
)
#: Prompts are in these, and translations from and into them.
_OF_PROMPTS = {"en": TaskLanguage("English", "英语"), "zh": TaskLanguage("Chinese", "汉语")}

_BY_CODE = {
    **{code: one for one in LANGUAGES for code in (one.milic, one.flores) if code},
    **_OF_PROMPTS,
}
#: Names in English prompts, by code.
ENGLISH = {code: one.english for code, one in _BY_CODE.items()}
#: Names in Chinese prompts, by code.
CHINESE = {code: one.chinese for code, one in _BY_CODE.items() if one.chinese}


def of_benchmark(name: str) -> tuple[str, ...]:
    """The codes, as a benchmark writes them, of the languages that the package has its tasks in.

    ``name`` is the module of the benchmark's loader, e.g. ``sib200``.
    """
    if name == "milic_eval":
        return tuple(one.milic for one in LANGUAGES if one.milic)
    return tuple(one.flores for one in LANGUAGES if name in one.benchmarks)


def name_of(code: str, prompt: str = "en") -> str:
    """The name of a language in a prompt in ``en`` or ``zh``."""
    names = CHINESE if prompt == "zh" else ENGLISH
    if code not in names:
        raise TrimixError(
            f"What the language {code!r} is called in prompts is not known.",
            "write language_name: … below `select:` in the task's YAML",
        )
    return names[code]
