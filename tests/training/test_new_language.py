"""`trimix new-language`: what it writes runs as it is, and what it says of languages is true."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from tests.repository.test_readme import run
from tests.support import quick_python
from tests.support.cpt_runs import UYGHUR, write_text
from tests.support.running import ROOT
from tests.support.sweeping import make_lm_eval_quick
from trimix_lm_eval import cli
from trimix_lm_eval.loading import run_config
from trimix_lm_eval.sweep import plan, sweep
from trimix_lm_eval.tasklib import belebele, flores, sib200
from trimix_lm_eval.tasklib.languages import ENGLISH
from trimix_lm_eval.training.cpt import config as configs
from trimix_lm_eval.training.cpt import train
from trimix_lm_eval.training.new_language import NewLanguageArguments, skeleton, write
from trimix_lm_eval.utils import io, paths
from trimix_lm_eval.utils.errors import TrimixError

pytestmark = pytest.mark.slow


@pytest.fixture
def asked(tmp_path):
    """What is wanted for a language that nobody ships."""

    def make(code="swh_Latn", **more):
        text = tmp_path / "text.txt"
        if not text.exists():
            write_text(text)
        return NewLanguageArguments(code, [str(text)], **{"output": tmp_path / "new", **more})

    return make


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- codes


def test_the_codes_are_as_many_as_were_published():
    known = flores.known()
    assert len([1 for one in known.values() if "sib200" in one.benchmarks]) == 205
    assert len([1 for one in known.values() if "belebele" in one.benchmarks]) == 122
    assert all(one.name and one.benchmarks for one in known.values())
    with Path(flores._FILE).open(encoding="utf-8") as stream:
        assert [row["code"] for row in csv.DictReader(stream, delimiter="\t")] == sorted(known)


def test_the_codes_are_those_of_lm_eval_and_of_the_shipped_tasks():
    import lm_eval.tasks

    files = (Path(lm_eval.tasks.__file__).parent / "belebele").glob("belebele_*.yaml")
    theirs = {path.stem.removeprefix("belebele_") for path in files}
    assert theirs == {c for c, one in flores.known().items() if "belebele" in one.benchmarks}
    for code, name in ENGLISH.items():
        if "_" in code:
            assert flores.known()[code].name == name
    for folder in ("sib200", "belebele"):
        for path in (paths.tasks_dir() / folder).glob("*.yaml"):
            code = read(path)["dataset_kwargs"]["select"]["language"]
            assert folder in flores.known()[code].benchmarks


@pytest.mark.parametrize(
    ("given", "code"), [("swh", "swh_Latn"), ("SWH-latn", "swh_Latn"), ("uig_Latn", "uig_Arab")]
)
def test_near_codes(given, code):
    assert code in [one.code for one in flores.near(given)]


# ---------------------------------------------------------------- files


def test_what_is_written_for_a_language_of_both_benchmarks(asked, tmp_path):
    folder, written = write(asked(license="cc0-1.0"))
    assert written == [
        "benchmarks.yaml",
        "cpt.yaml",
        "model.yaml",
        "sweep.yaml",
        "tasks/trimix_belebele_swh_Latn.yaml",
        "tasks/trimix_belebele_swh_Latn_ll.yaml",
        "tasks/trimix_sib200_swh_Latn.yaml",
        "tasks/trimix_sib200_swh_Latn_ll.yaml",
        "tasks/trimix_swh_Latn_rolling.yaml",
        "test.jsonl",
    ]
    config = configs.read(folder / "cpt.yaml")
    assert config.language == "swh_Latn" and config.license == "cc0-1.0"
    assert config.test == folder / "test.jsonl" and config.dtype == "float32"
    # Apart, for a sweep takes no results of another; the report is one over both.
    for name, part in (("sweep.yaml", "text"), ("benchmarks.yaml", "benchmarks")):
        assert plan.read(folder / name).output == folder / "results" / part
    run = run_config.load(str(folder / "model.yaml"))
    assert run_config.configured(run, "model.yaml").model_args["pretrained"] == "demo"
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    for name in plan.read(folder / "benchmarks.yaml").settings[0].tasks:
        assert manager.match_tasks([name]) == [name]
        select = manager.task_index[name].cfg["dataset_kwargs"]["select"]
        assert select == {"language": "swh_Latn", "language_name": "Swahili"}
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    text = (tmp_path / "text.txt").read_text()
    assert len(rows) == 4 and all(row["text"] in text for row in rows)


def test_tasks_that_are_shipped_are_not_written_again(asked):
    folder, written = write(asked("uig_Arab"))
    assert [name for name in written if name.startswith("tasks/")] == [
        "tasks/trimix_uig_Arab_rolling.yaml"
    ]
    (setting,) = plan.read(folder / "benchmarks.yaml").settings
    assert setting.tasks == ["trimix_sib200_uig_Arab", "trimix_sib200_uig_Arab_ll"]


def test_a_language_that_no_benchmark_has(asked, capsys):
    folder, written = write(asked("x-klingon", name="Klingon"))
    assert "benchmarks.yaml" not in written
    assert "tasks/trimix_x_klingon_rolling.yaml" in written
    assert "Klingon" in (folder / "cpt.yaml").read_text()
    assert "x-klingon is not a code of FLORES-200" in capsys.readouterr().out


def test_other_models_and_english(asked, pico, tmp_path):
    trio = pico("llama")
    write_text(tmp_path / "english.txt")
    folder, _ = write(
        asked(
            base=trio["small_base"],
            large=trio["large_ins"],
            english=[str(tmp_path / "english.txt")],
        )
    )
    config = configs.read(folder / "cpt.yaml")
    assert config.base == trio["small_base"] and config.sequence_length == 96
    assert config.english[0].where == str(tmp_path / "english.txt") and config.ratio == 4
    arguments = read(folder / "sweep.yaml")["model_args"]
    assert arguments["pretrained"] == trio["large_ins"]
    assert arguments["small_base"] == trio["small_base"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"code": "a/b"}, "cannot be part of a task's name"),
        ({"base": "Qwen/Qwen2.5-1.5B"}, "--large: one of .*Qwen/Qwen2.5-7B-Instruct"),
        ({"base": "no/such"}, "--large: a larger one of its family"),
        ({"text": ["nowhere.txt"]}, "there is no file nowhere.txt"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(asked, tmp_path, more, message):
    with pytest.raises(TrimixError, match=message):
        write(asked()._replace(**more))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name",
    ["a # b: c", '"quoted" \\ back', "{{ 7 }} {% raw %}", "- x", "'", "\N{BYTE ORDER MARK}é😀"],
)
def test_a_name_is_a_text_whatever_is_in_it(asked, name):
    folder, written = write(asked(name=name, license=name, large=name, base=str(_base())))
    plain, _ = write(asked(output=folder.with_name("plain"), large="x", base=str(_base())))
    for file in written:
        if file.endswith(".yaml"):
            assert read(folder / file).keys() == read(plain / file).keys(), file
    assert configs.read(folder / "cpt.yaml").license == name
    assert read(folder / "model.yaml")["model_args"]["pretrained"] == name
    (task,) = folder.glob("tasks/*sib200_swh_Latn.yaml")
    assert read(task)["dataset_kwargs"]["select"]["language_name"] == name


def _base() -> Path:
    return paths.demo_dir() / "small_base"


@pytest.mark.parametrize("key", ["name", "license", "large", "base", "text_field"])
@pytest.mark.parametrize("bad", ["a\nkey: 1", "a\rb", "a\0", "a\u2028b: c", "a\x85b", "\ud800"])
def test_texts_of_several_lines_are_refused(asked, tmp_path, key, bad):
    with pytest.raises(TrimixError, match=r"has .* in it.\n  -> give one line"):
        write(asked()._replace(**{key: bad}))
    assert not (tmp_path / "new").exists()


def test_comments_and_values_hold_any_folder(asked, tmp_path):
    """Such a folder is refused where it is asked for; the templates do not rely on that."""
    assert skeleton._comment("a\nb: c") == "a\\nb: c"
    for text in ("a\nb", "\x85\u2028\x7f\0", '"', "\\", "😀", " x ", "a" * 999):
        assert yaml.safe_load(skeleton._scalar(text)) == text and "\n" not in skeleton._scalar(text)


def test_the_folder_is_there_as_a_whole_or_not_at_all(asked, tmp_path, monkeypatch):
    real, left = io.write, 3

    def full(path, *more):
        nonlocal left
        left -= 1
        if left < 0:
            raise TrimixError(f"{path} cannot be written: No space left on device.")
        real(path, *more)

    with monkeypatch.context() as patch, pytest.raises(TrimixError, match="No space left"):
        patch.setattr(io, "write", full)
        write(asked())
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    folder, _ = write(asked())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    left = 3
    with monkeypatch.context() as patch, pytest.raises(TrimixError, match="No space left"):
        patch.setattr(io, "write", full)
        write(asked(force=True, license="mit"))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_is_there_is_not_written_over(asked, capsys):
    folder, _ = write(asked())
    (folder / "cpt.yaml").write_text("mine")
    with pytest.raises(TrimixError, match="--force"):
        write(asked())
    assert (folder / "cpt.yaml").read_text() == "mine"
    write(asked(force=True))
    assert (folder / "cpt.yaml").read_text() != "mine"


def test_the_text_is_not_written_over(asked):
    """With --force neither: the test documents are a tenth of what would be lost."""
    folder, _ = write(asked())
    mine = (folder / "test.jsonl").read_text()
    with pytest.raises(TrimixError, match="test.jsonl are the same file"):
        write(asked(force=True)._replace(text=[str(folder / "test.jsonl")]))
    assert (folder / "test.jsonl").read_text() == mine


def test_what_it_made_before_is_no_text(asked, tmp_path):
    here = asked()._replace(text=[str(tmp_path)], force=True)
    folder, _ = write(here)
    (folder / "small_cpt").mkdir()
    (folder / "small_cpt" / "held_out.jsonl").write_text('{"text": "made"}\n')
    before = (folder / "test.jsonl").read_text()
    write(here)
    assert read(folder / "cpt.yaml")["text"] == [str(tmp_path / "text.txt")]
    assert (folder / "test.jsonl").read_text() == before


# ---------------------------------------------------------------- from text to numbers


def test_the_commands_of_the_guide_as_printed(tmp_path):
    """On less text than the guide has, which makes fewer steps."""
    guide = (ROOT / "docs" / "new_language.md").read_text(encoding="utf-8")
    scripts = re.findall(r"^```sh\n(.*?)^```", guide, flags=re.M | re.S)
    write_text(tmp_path / "ug_udt_train.txt", 85, UYGHUR)
    programs = quick_python.folder()
    said = [run(["bash", "-euc", script], tmp_path, programs) for script in scripts]
    commands = said[0][0].partition("Now:\n\n")[2].partition("\n\n")[0].splitlines()
    assert commands == "".join(scripts[1:]).splitlines(), "what is printed is what the guide says"
    table = (tmp_path / "uig_Arab/report/report.md").read_text(encoding="utf-8")
    for row in ("small\\_cpt", "large\\_ins", "TriMix ppl", "Proxy Tuning"):
        assert re.search(rf"^\| {re.escape(row)} .*\d\.\d", table, flags=re.M), row
    card = (tmp_path / "uig_Arab/small_cpt/README.md").read_text(encoding="utf-8")
    assert "license: cc-by-sa-4.0" in card


def test_from_text_to_numbers(tmp_path, monkeypatch, capsys):
    """The command as typed, then each of the files as written, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt", 500)
    assert cli.main(["new-language", "swh_Latn", "--text", "text.txt", "--output", "new"]) == 0
    said = capsys.readouterr().out
    for command in ("trimix cpt new/cpt.yaml", "trimix sweep new/sweep.yaml"):
        assert f"{command}\n" in said
    train({**read(tmp_path / "new" / "cpt.yaml"), "steps": 8, "evaluations": 1})
    files = ("new/small_cpt/cpt/data/held_out.jsonl", "new/test.jsonl")
    held_out, test = (set((tmp_path / name).read_text().split()) for name in files)
    assert not {word for word in held_out & test if "." in word}, "lines end with their number"
    make_lm_eval_quick(monkeypatch)
    written = sweep(tmp_path / "new" / "sweep.yaml")
    found = {}
    for path in written:
        results = json.loads(path.read_text())
        (task,) = results["results"]
        found[path.parents[1].name] = results["results"][task]["bits_per_byte,none"]
    numbers = json.loads((tmp_path / "new/small_cpt/cpt/measured.json").read_text())["test"]
    assert found["small_cpt"] == pytest.approx(numbers["after"], rel=1e-5)
    assert found["small_base"] == pytest.approx(numbers["before"], rel=1e-5)
    assert found["ppl"] < found["large_ins"]


def test_a_benchmark_of_a_further_language(asked, tmp_path, monkeypatch):
    """SIB-200 and Belebele in a language that nobody ships, with data that is made up."""
    folder, _ = write(asked())
    data = tmp_path / "data"
    (data / "swh_Latn").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [f"{i}\t{label}\tmaandishi {i}" for i, label in enumerate(sib200.LABELS)]
        (data / "swh_Latn" / f"{split}.tsv").write_text(
            "index_id\tcategory\ttext\n" + "\n".join(rows) + "\n"
        )
    question = {f"mc_answer{i}": f"jibu {i}" for i in range(1, 5)}
    row = {"flores_passage": "kifungu", "question": "swali?", "correct_answer_num": "2", **question}
    (data / "swh_Latn.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(sib200, "_ROWS", {"train": 7, "test": 7})
    monkeypatch.setattr(belebele, "_ROWS", 1)
    metadata = {"data_dir": str(data)}
    manager = TaskManager(
        include_path=str(folder / "tasks"), include_defaults=False, metadata=metadata
    )
    results = simple_evaluate(
        model="trimix",
        model_args={"pretrained": "demo", "policy": "small_base"},
        tasks=["trimix_sib200_swh_Latn_ll", "trimix_belebele_swh_Latn_ll"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    prompt = results["samples"]["trimix_sib200_swh_Latn_ll"][0]["arguments"][0][0]
    assert "classify the following Swahili text" in prompt
    assert results["samples"]["trimix_belebele_swh_Latn_ll"][0]["doc"]["language"] == "Swahili"
