"""The run configs: all are there, say what they should, and pass ``trimix check``.

Their models stand on a Hub in this process as configs and tokenizers beside an empty file of
weights, each with the config and padding of its family; the tasks' data as folders.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers
import yaml
from lm_eval.config.evaluate_config import EvaluatorConfig
from safetensors.torch import save_file

from tests.conftest import PADDED, SHAPE, byte_tokenizer, config_of
from tests.support.hub import ROOT, Hub, client

pytestmark = pytest.mark.slow

CONFIGS = ROOT / "model_configs"
README = (CONFIGS / "README.md").read_text(encoding="utf-8")


class Pair(NamedTuple):
    """A row of the table of models; `cpt` has a hole for the language."""

    family: str
    large: str
    base: str
    cpt: str
    languages: str
    known: str = "confirmed"  # of small_cpt, as the table has it
    fixed: bool = False  # whether the authors ship weights for it


EIGHT = "bo ug kk mn ben tam tel ory"
QWEN = ("Qwen/Qwen2.5-{}-Instruct", "Qwen/Qwen2.5-{}", "pkupie/Qwen2.5-{}-{{}}-cpt")


def qwen(small: str, large: str, fixed: bool = False) -> Pair:
    names = [n.format(size) for n, size in zip(QWEN, (large, small, small), strict=True)]
    return Pair("qwen2", *names, "bo ug kk mn", fixed=fixed)


PAIRS = {
    "qwen2.5-1.5b+3b": qwen("1.5B", "3B"),
    "qwen2.5-1.5b+7b": qwen("1.5B", "7B", fixed=True),
    "qwen2.5-1.5b+14b": qwen("1.5B", "14B"),
    "qwen2.5-3b+14b": qwen("3B", "14B", fixed=True),
    "llama2-7b+13b": Pair(
        "llama",
        "meta-llama/Llama-2-13b-chat-hf",
        "meta-llama/Llama-2-7b-hf",
        "pkupie/Llama-2-7b-{}",
        "bo ug mn ben tam tel ory",
        known="**UNCONFIRMED**",
    ),
    "llama3.2-1b+3b": Pair(
        "llama",
        "meta-llama/Llama-3.2-3B-Instruct",
        "meta-llama/Llama-3.2-1B",
        "pkupie/Llama-3.2-1B-{}-cpt",
        "bo ug kk",
        known="**UNCONFIRMED**",
    ),
    "gemma3-4b+12b": Pair(
        "gemma3",
        "google/gemma-3-12b-it",
        "google/gemma-3-4b-pt",
        "pkupie/gemma-3-4b-{}-cpt",
        "bo ug kk mn",
    ),
    "qwen3.5-2b+9b": Pair(
        "qwen3_5",
        "Qwen/Qwen3.5-9B",
        "Qwen/Qwen3.5-2B-Base",
        "qwen3.5-2b-{}/small_cpt",
        EIGHT,
        known="to be trained",
    ),
    "gemma4-e2b+31b": Pair(
        "gemma4",
        "google/gemma-4-31B-it",
        "google/gemma-4-E2B",
        "gemma4-e2b-{}/small_cpt",
        EIGHT,
        known="to be trained",
    ),
}
#: What stands above the name of a small_cpt, by what is known of it.
MARKS = {"**UNCONFIRMED**": "UNCONFIRMED: ", "to be trained": "TO BE TRAINED, "}
#: The Llama 2 checkpoints have three letters in their names.
THREE = {"bo": "bod", "ug": "uig", "mn": "mon"}
LRL = ("bo", "ug", "kk", "mn")
CODES = {"bo": "bod_Tibt", "ug": "uig_Arab", "kk": "kaz_Arab", "mn": "mon_Mong"}
INDIC = {"ben": "ben_Beng", "tam": "tam_Taml", "tel": "tel_Telu", "ory": "ory_Orya"}

FILES = {
    f"{folder}/{language}{suffix}.yaml": (pair, language)
    for folder, pair in PAIRS.items()
    for language in pair.languages.split()
    for suffix in (["", ".fixed"] if pair.fixed else [""])
}
FIXED = [name for name in FILES if ".fixed." in name]


def text(name: str) -> str:
    return (CONFIGS / name).read_text(encoding="utf-8")


def cpt_name(name: str) -> str:
    pair, language = FILES[name]
    return pair.cpt.format(THREE.get(language, language) if "Llama-2-" in pair.cpt else language)


# ------------------------------------------------------------------------ what the files say


def test_every_pair_and_language_has_its_file_and_no_other():
    assert {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")} == {
        "demo.yaml",
        "gemma3-hplt-2b+4b.yaml",  # a sweep, see tests/sweep/test_two_sources.py
        *FILES,
    }


@pytest.mark.parametrize("name", FILES)
def test_file_agrees_with_its_name(name):
    (pair, language), run = FILES[name], yaml.safe_load(text(name))
    arguments = run["model_args"]
    assert arguments["pretrained"] == pair.large
    assert arguments["small_base"] == pair.base
    assert arguments["small_cpt"] == cpt_name(name)
    small, large = re.findall(r"[\d.]+b", name.split("/")[0])
    assert small in pair.base.lower() and small in pair.cpt.lower() and large in pair.large.lower()
    code = INDIC.get(language)
    benchmarks = [f"trimix_sib200_{code}", f"trimix_belebele_{code}"]
    assert run["tasks"] == (benchmarks if code else [f"trimix_milic_{language}"])
    assert f"\n#   lm_eval run --config model_configs/{name}\n" in text(name)


def above(name: str) -> str:
    """The comment above the name of a file's small_cpt."""
    lines = text(name).splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("  small_cpt:")]
    first = at
    while lines[first - 1].startswith("  #"):
        first -= 1
    return "\n".join(lines[first:at])


def test_names_that_are_no_checkpoints_of_the_authors_are_marked():
    for name, (pair, _) in FILES.items():
        for known, mark in MARKS.items():
            assert above(name).startswith(f"  # {mark}") is (pair.known == known), name
            assert text(name).count(mark) == (pair.known == known), name
    for folder, pair in PAIRS.items():
        (row,) = re.findall(rf"^\| `{re.escape(folder)}` \| [^|]*→.*$", README, flags=re.M)
        assert f"| {pair.languages} |" in row and f"| {pair.known} |" in row


@pytest.mark.parametrize("name", [n for n in FILES if FILES[n][0].known == "to be trained"])
def test_what_is_to_be_trained_says_how(name):
    """Its commands write the folder that the file names, from the models that it names."""
    (pair, language), said = FILES[name], above(name).replace("  # ", "").replace(" \\\n", "")
    code = INDIC.get(language) or CODES[language]
    folder = cpt_name(name).removesuffix("/small_cpt")
    made = f"trimix new-language {code} --output {folder} --text … "
    assert made + f"--base {pair.base} --large {pair.large}" in " ".join(said.split())
    assert f"trimix cpt {folder}/cpt.yaml" in said
    assert "which are not the paper's" in text(name).splitlines()[0]
    thinks = yaml.safe_load(text(name))["model_args"].get("enable_thinking")
    assert (thinks is False) is (pair.family == "qwen3_5")


# ------------------------------------------------------------------------ the authors' weights


def cells(name: str) -> dict[str, tuple[str, str]]:
    """The table of weights in a file's comments: task -> (alpha, beta)."""
    rows = re.findall(r"^#   (\w+) +(\d\.\d) (\d\.\d)$", text(name), flags=re.M)
    return {task: (alpha, beta) for task, alpha, beta in rows}


def test_authors_weights():
    found = {name: cells(name) for name in FILES if name not in FIXED}
    assert all(bool(cells) == FILES[name][0].fixed for name, cells in found.items())
    assert Counter(pair for of_file in found.values() for pair in of_file.values()) == {
        ("0.1", "0.9"): 32,
        ("0.1", "1.0"): 17,
        ("0.3", "0.9"): 4,
        ("0.3", "1.0"): 2,
        ("0.1", "0.7"): 1,
    }


@pytest.mark.parametrize("name", FIXED)
def test_fixed_twin(name):
    """It has the most frequent weights, says which tasks have others, and differs in no more."""
    sibling = name.replace(".fixed", "")
    ours, theirs = (yaml.safe_load(text(n)) for n in (name, sibling))
    assert theirs["model_args"].pop("policy") == "ppl"
    assert ours["model_args"].pop("policy") == "fixed"
    chosen = tuple(str(ours["model_args"].pop(weight)) for weight in ("alpha", "beta"))
    assert ours == theirs
    table, language = cells(sibling), FILES[name][1]
    assert list(table) == [
        "response_selection",
        "reading_comprehension",
        "text_classification",
        "title_generation",
        "math",
        f"translation_{language}_en",
        f"translation_en_{language}",
    ]
    counts = Counter(table.values())
    assert counts[chosen] == max(counts.values())
    assert chosen == ("0.1", "0.9") or counts["0.1", "0.9"] < counts[chosen]
    assert f" for {counts[chosen]} of 7 tasks" in text(name)
    task = rf"^#   (\d\.\d) (\d\.\d)  --tasks trimix_milic_{language}_(\w+)$"
    others = {task: (a, b) for a, b, task in re.findall(task, text(name), flags=re.M)}
    assert others == {task: pair for task, pair in table.items() if pair != chosen}


def test_command_line_replaces_what_the_comments_say_it_does():
    given = {"config": str(CONFIGS / FIXED[0]), "tasks": ["a"], "model_args": {"beta": 1.0}}
    run = EvaluatorConfig.from_cli(Namespace(**given))
    assert run.tasks == ["a"] and run.model_args == {"beta": 1.0}
    assert run.log_samples and run.output_path == "results" and run.batch_size == 8


# ------------------------------------------------------------------------ trimix check


#: Families whose models can see.
WRAPPERS = {"gemma3": "Gemma3", "gemma4": "Gemma4", "qwen3_5": "Qwen3_5"}
#: All but those whose models are not in the oldest transformers that is supported.
LOADABLE = [
    name
    for name, (pair, _) in FILES.items()
    if pair.family not in WRAPPERS or hasattr(transformers, f"{WRAPPERS[pair.family]}Config")
]


def save(folder: Path, family: str, large: bool) -> Path:
    """Write a model of a family without weights; small ones have fewer rows of padding."""
    if family == "qwen3_5":
        given = {**SHAPE, "vocab_size": PADDED["large_ins" if large else "small_cpt"]}
        given |= {"hidden_size": 32, "num_hidden_layers": 4}
        config = transformers.Qwen3_5TextConfig(**given)
    else:
        config = config_of(family, "large_ins" if large else "small_cpt")
    if wrapper := WRAPPERS.get(family):  # they can see, and their text model is nested
        vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        kind = getattr(transformers, f"{wrapper}Config")
        config = kind(text_config=config.to_dict(), vision_config=vision)
        config.architectures = [f"{wrapper}ForConditionalGeneration"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    save_file({}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Repository id -> folder, for every model that a file names."""
    root = tmp_path_factory.mktemp("models")
    of_family = {
        (family, large): save(root / f"{family}-{large}", family, large)
        for family in {FILES[name][0].family for name in LOADABLE}
        for large in (False, True)
    }
    made = {}
    for name in LOADABLE:
        pair = FILES[name][0]
        arguments = yaml.safe_load(text(name))["model_args"]
        for role in ("pretrained", "small_cpt", "small_base"):
            made[arguments[role]] = of_family[pair.family, role == "pretrained"]
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What `Hub` is to know of datasets: they are there, at the commits that the tasks ask for."""
    from trimix_lm_eval.tasklib import belebele, milic_eval, sib200

    root = tmp_path_factory.mktemp("data")
    for module, kinds in (
        (belebele, [{"language": code} for code in INDIC.values()]),
        (sib200, [{"language": code} for code in INDIC.values()]),
        (
            milic_eval,
            [{"task": t, "language": c} for t in milic_eval.TASKS for c in milic_eval.LANGUAGES],
        ),
    ):
        for file in (file for kind in kinds for file in module.files(**kind)):
            (root / file.hub).parent.mkdir(parents=True, exist_ok=True)
            (root / file.hub).touch()
    benchmarks = [module.BENCHMARK for module in (belebele, milic_eval, sib200)]
    pinned = {b.repository: b.revision for b in benchmarks if b.revision != "main"}
    return {"datasets": {b.repository: root for b in benchmarks}, "commits": pinned}


@pytest.fixture
def quantizer(tmp_path):
    """A folder to put on the path so that bitsandbytes is found; the check looks no further."""
    if find_spec("bitsandbytes") is None:
        (tmp_path / "bitsandbytes").mkdir()
        (tmp_path / "bitsandbytes" / "__init__.py").touch()
    return str(tmp_path)


def check(names, hub, home, **env) -> tuple[int, dict[str, str]]:
    """Run ``trimix check`` on files; return its exit code and what it printed of each."""
    files = [str(CONFIGS / name) for name in names]
    command = ["-m", "trimix_lm_eval", "check", "--config", *files]
    ran = client(home, hub.endpoint, *command, timeout=300, CUDA_VISIBLE_DEVICES="", **env)
    printed = re.split(r"^(?=OK |FAIL )", ran.stdout, flags=re.M)[1:]
    assert len(printed) == len(names), ran.stdout + ran.stderr[-2000:]
    return ran.returncode, dict(zip(names, printed, strict=True))


def test_all_files_pass_the_check(models, data, quantizer, tmp_path):
    with Hub(models, **data) as hub:
        code, printed = check(LOADABLE, hub, tmp_path / "home", PYTHONPATH=quantizer)
    failed = [block for block in printed.values() if not block.startswith("OK ")]
    assert code == 0 and not failed, "\n".join(failed)
    for name, block in printed.items():
        arguments = yaml.safe_load(text(name))["model_args"]
        # At (0.1, 0.9) small_base has no weight, and need not be loaded.
        two = arguments.get("beta") == 0.9
        stored = arguments.get("quantization", "bfloat16")
        assert len(re.findall(rf" {stored} +\d", block)) == 3 - two, block
        assert ("small_base" in block) is not two
        assert "token ids are fused" in block
        indic = FILES[name][1] in INDIC
        places = ["Davlan/sib200", "facebook/belebele"] if indic else ["pkupie/milic-eval"]
        assert f"data: {', '.join(f'{place} (Hub)' for place in places)}\n" in block
    assert not [path for path in hub.asked if path.endswith(".safetensors")]
    asked = Counter(path for path in hub.asked if path.endswith("additional_chat_templates"))
    assert all(count == 1 for count in asked.values()), "runs share the tokenizer of a commit"


@pytest.mark.parametrize("installed", [False, True])
def test_what_stops_a_newcomer_is_in_the_file(models, data, quantizer, tmp_path, installed):
    """A missing library, gated models and gated data: the comments say what the message says."""
    folders = ("qwen2.5-1.5b+7b", "llama3.2-1b+3b", "gemma3-4b+12b")
    names = [f"{folder}/bo.yaml" for folder in folders]
    gated = [repo for repo in models if repo.startswith(("google/", "meta-llama/"))]
    path = quantizer if installed else ""
    with Hub(models, **data, gated=[*gated, "pkupie/milic-eval"]) as hub:
        code, printed = check(names, hub, tmp_path / "home", PYTHONPATH=path)
    assert code == 1
    for name, block in printed.items():
        library = re.findall(r"-> (pip install .*)", block)
        page = re.findall(r"-> accept the conditions at (\S+),", block)
        advice = [*library, *(f"#   {url}\n" for url in page)]
        assert advice and all(one in text(name) for one in advice)
        without = not (installed or find_spec("bitsandbytes"))
        assert bool(library) is (without and FILES[name][0].family == "qwen2")
