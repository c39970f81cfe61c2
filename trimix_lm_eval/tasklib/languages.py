"""The languages of the package's tasks, one line each: codes, names in prompts, benchmarks.

A line added here gives the language its tasks (``python tasks/generate.py`` writes them), its name
in prompts, and its name in reports and in files to submit. What a code of FLORES-200 means and
which benchmarks have it is in `flores`.
"""

from __future__ import annotations

from typing import NamedTuple

from trimix_lm_eval.tasklib import flores
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
#: Further codes of FLORES-200, whose main tasks exist by log-likelihood only: languages in which
#: others have published a small model with the tokenizer of a large one, see `model_configs/`.
FURTHER = (
    *("arb_Arab", "bos_Latn", "bul_Cyrl", "cat_Latn", "ces_Latn", "dan_Latn", "deu_Latn"),
    *("ell_Grek", "est_Latn", "eus_Latn", "fin_Latn", "fra_Latn", "glg_Latn", "hin_Deva"),
    *("hrv_Latn", "hun_Latn", "isl_Latn", "ita_Latn", "lit_Latn", "lvs_Latn", "nld_Latn"),
    *("nob_Latn", "pol_Latn", "por_Latn", "ron_Latn", "rus_Cyrl", "slk_Latn", "slv_Latn"),
    *("spa_Latn", "swe_Latn", "tur_Latn", "ukr_Cyrl", "zho_Hans"),
)
#: Prompts are in these, and translations from and into them.
_OF_PROMPTS = {"en": TaskLanguage("English", "英语"), "zh": TaskLanguage("Chinese", "汉语")}

_BY_CODE = {
    **{code: one for one in LANGUAGES for code in (one.milic, one.flores) if code},
    **_OF_PROMPTS,
}
#: Names in English prompts, by code.
ENGLISH = {
    **{code: flores.known()[code].name for code in FURTHER},
    **{code: one.english for code, one in _BY_CODE.items()},
}
#: Names in Chinese prompts, by code.
CHINESE = {code: one.chinese for code, one in _BY_CODE.items() if one.chinese}


def of_benchmark(name: str) -> tuple[str, ...]:
    """The codes, as a benchmark writes them, of the languages that the package has its tasks in.

    ``name`` is the module of the benchmark's loader, e.g. ``sib200``.
    """
    if name == "milic_eval":
        return tuple(one.milic for one in LANGUAGES if one.milic)
    return tuple(one.flores for one in LANGUAGES if name in one.benchmarks)


def further(name: str) -> tuple[str, ...]:
    """The codes of `FURTHER` that a benchmark over FLORES-200 has."""
    return tuple(code for code in FURTHER if name in flores.known()[code].benchmarks)


def name_of(code: str, prompt: str = "en") -> str:
    """The name of a language in a prompt in ``en`` or ``zh``."""
    names = CHINESE if prompt == "zh" else ENGLISH
    if code not in names:
        raise TrimixError(
            f"What the language {code!r} is called in prompts is not known.",
            "write language_name: … below `select:` in the task's YAML",
        )
    return names[code]
