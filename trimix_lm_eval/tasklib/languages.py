"""What the languages of the benchmarks are called in prompts."""

from __future__ import annotations

from trimix_lm_eval.utils.errors import TrimixError

#: In English prompts, by ISO 639-1 code or by the code of FLORES-200.
ENGLISH = {
    "bo": "Tibetan",
    "ug": "Uyghur",
    "kk": "Kazakh",
    "mn": "Mongolian",
    "en": "English",
    "zh": "Chinese",
    "bod_Tibt": "Tibetan",
    "uig_Arab": "Uyghur",
    "kaz_Cyrl": "Kazakh",
    "khk_Cyrl": "Mongolian",
    "ben_Beng": "Bengali",
    "tam_Taml": "Tamil",
    "tel_Telu": "Telugu",
    "ory_Orya": "Odia",
}

#: In Chinese prompts.
CHINESE = {
    "bo": "藏语",
    "ug": "维吾尔语",
    "kk": "哈萨克语",
    "mn": "蒙古语",
    "en": "英语",
    "zh": "汉语",
}


def name_of(code: str, prompt: str = "en") -> str:
    """The name of a language in a prompt.

    Args:
        code: Of the language.
        prompt: The language of the prompt, ``en`` or ``zh``.

    Raises:
        TrimixError: It is not known.
    """
    names = CHINESE if prompt == "zh" else ENGLISH
    if code not in names:
        raise TrimixError(
            f"What the language {code!r} is called in prompts is not known.",
            "write language_name: … below `select:` in the task's YAML",
        )
    return names[code]
