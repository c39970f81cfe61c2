"""The command line: what it hands on, what it prints, what it never imports."""

import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from trimix_lm_eval import __main__ as entry
from trimix_lm_eval import cli
from trimix_lm_eval.cli.arguments import read_metadata
from trimix_lm_eval.tasklib import catalog
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import demo_dir, model_configs_dir, tasks_dir


@pytest.fixture
def lm_eval(monkeypatch):
    """What lm-eval's command line is given; ``.act`` is what it then does."""
    import lm_eval.__main__

    seen = SimpleNamespace(argv=None, act=lambda: None)

    def cli_evaluate():
        seen.argv = sys.argv[1:]
        seen.act()

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", cli_evaluate)
    monkeypatch.setattr(sys, "argv", ["trimix"])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    return seen


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("given", "handed_on"),
    [
        (["run", "--model", "trimix", "--help"], ["run", "--model", "trimix", "--help"]),
        (["ls", "tasks"], ["ls", "tasks"]),
        (["validate", "--tasks", "a b"], ["validate", "--tasks", "a b"]),
        (["--model", "trimix", "-L", "4"], ["run", "--model", "trimix", "-L", "4"]),
    ],
)
def test_lm_eval_gets_its_own_words(lm_eval, given, handed_on):
    assert cli.main(given) == 0
    assert lm_eval.argv == handed_on


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("limit: -1", "limit"),
        ("include_path: nosuch/dir", "there is no folder nosuch/dir"),
        ("tasks: 5", "tasks"),
        ("taskss: [a]", "taskss"),
    ],
)
@pytest.mark.parametrize("words", [["--config"], ["-C"]])
def test_a_config_of_ours_is_checked_before_it_is_handed_on(
    lm_eval, capsys, tmp_path, wrong, says, words
):
    file = tmp_path / "run.yaml"
    sound = "model: trimix\nmodel_args: {pretrained: demo}\n"
    tasks = "" if wrong.startswith("tasks") else "tasks: [trimix_demo]\n"
    file.write_text(f"{sound}{tasks}{wrong}\n", encoding="utf-8")
    assert cli.main(["run", *words, str(file)]) == 1
    assert lm_eval.argv is None
    told = capsys.readouterr().err
    assert told.startswith("error: ") and says in told
    file.write_text(f"{sound}tasks: [trimix_demo]\n".replace("trimix\n", "hf\n"), "utf-8")
    assert cli.main(["run", *words, str(file)]) == 0, "of other models nothing is known"
    assert lm_eval.argv == ["run", *words, str(file)]


def test_mendable_error_is_a_message(lm_eval, capsys):
    lm_eval.act = lambda: raise_(TrimixError("No such policy.", "accepted: ppl"))
    assert cli.main(["run"]) == 1
    assert capsys.readouterr().err == "error: No such policy.\n  -> accepted: ppl\n"


def test_other_errors_keep_their_traceback(lm_eval):
    lm_eval.act = lambda: raise_(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["run"])


def test_ctrl_c(lm_eval, capsys):
    lm_eval.act = lambda: raise_(KeyboardInterrupt)
    assert cli.main(["run"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("given", "paths", "expected"),
    [
        (["--config", "a.yaml", "b.yaml"], ["a.yaml", "b.yaml"], (None, {})),
        (
            ["--model_args", "pretrained=demo", "policy=ppl"],
            [None],
            ("pretrained=demo,policy=ppl", {}),
        ),
        (["--config", "a.yaml", "--model_args", "policy=ent"], ["a.yaml"], ("policy=ent", {})),
        (
            ["--config", "a.yaml", "--metadata", "data_dir=x", "exemplars=train_2"],
            ["a.yaml"],
            (None, {"data_dir": "x", "exemplars": "train_2"}),
        ),
        (
            ["--config", "a.yaml", "--metadata", '{"data_dir": {"sib200": "x"}}'],
            ["a.yaml"],
            (None, {"data_dir": {"sib200": "x"}}),
        ),
    ],
)
def test_check(monkeypatch, capsys, given, paths, expected):
    seen = []

    def check_run(*args):
        seen.append(args)
        if args[0] == "b.yaml":
            raise TrimixError("It is wrong.", "fix it")
        return ["found"]

    monkeypatch.setattr("trimix_lm_eval.harness.check.check_run", check_run)
    assert cli.main(["check", *given]) == ("b.yaml" in paths)
    assert seen == [(path, *expected, False) for path in paths]
    out = capsys.readouterr().out
    assert out.startswith(f"OK    {paths[0] or '--model_args ' + expected[0]}\n      found\n")
    assert out.endswith("FAIL  b.yaml\n      It is wrong.\n        -> fix it\n") == (len(paths) > 1)


@pytest.mark.parametrize("text", ["{'data_dir': 'x'}", '{"a": 1, "a": 2}', '{"a":' + "[" * 10**5])
def test_metadata_that_is_not_json(capsys, text):
    assert cli.main(["tasks", "--metadata", text]) == 1
    assert "--metadata is not JSON" in capsys.readouterr().err


def test_metadata_in_words():
    assert read_metadata(["a=1", "b=2,c="]) == {"a": "1", "b": "2", "c": ""}
    with pytest.raises(TrimixError, match="--metadata 'a' is given twice"):
        read_metadata(["a=1", "b=2,a=1"])


def test_every_file_is_a_subcommand_that_help_names(capsys):
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    told = capsys.readouterr().out
    for name in files - {"__init__", "arguments"}:
        assert re.search(rf"^    {name.replace('_', '-')}\b", told, flags=re.M), name


@pytest.mark.parametrize("args", [[], ["nonsense"], ["check", "--config"]])
def test_wrong_usage(args, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == 2
    assert "usage: trimix" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["report", "results", "--output="],
        ["report", ""],
        ["compare", "results", "--output="],
        ["compare", "--tasks", "t", "--output_path="],
        ["export", "results", "--to", "csv", "--output", " "],
        ["leaderboard", "results", "--output="],
        ["explain", "--prompt", "x", "--output="],
        ["explain", "--prompt", "x", "--json="],
        ["explain", "--samples="],
        ["new-language", "uig_Arab", "--text", "a.txt", "--output="],
        ["new-language", "uig_Arab", "--text", ""],
    ],
)
def test_an_empty_path_is_not_the_current_folder(args, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == 2
    assert "it is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "near"), [("swep", "sweep"), ("new_language", "new-language"), ("rnu", "run")]
)
def test_a_command_with_a_typo_is_guessed(capsys, given, near):
    with pytest.raises(SystemExit) as stopped:
        cli.main([given, "a.yaml"])
    assert stopped.value.code == 2
    assert f"Unknown command '{given}'. Did you mean '{near}'?" in capsys.readouterr().err


def test_tasks(capsys):
    assert cli.main(["tasks"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "KIND", "SHOTS", "WHAT", "DATA"]
    assert ["trimix_demo", "group"] in [row.split()[:2] for row in rows if row]


def test_tasks_pattern_that_matches_nothing(capsys):
    assert cli.main(["tasks", "trimix_dmeo"]) == 1
    assert "near it: trimix_demo" in capsys.readouterr().err


def test_catalog_reads_includes_functions_and_groups(tmp_path):
    (tmp_path / "_template_yaml").write_text(
        "output_type: multiple_choice\nprocess_docs: !function utils.f\nnum_fewshot: 5\n"
    )
    (tmp_path / "t.yaml").write_text("include: _template_yaml\ntask: t\ntag: kind\n")
    (tmp_path / "g.yaml").write_text("group: g\ntask: [t, {task: plain, num_fewshot: 1}]\n")
    (tmp_path / "default.yaml").write_text("task: plain\ndataset_path: here\n")
    configs = catalog.read_all(tmp_path)
    assert configs["t"]["process_docs"] == "utils.f"
    lines = catalog.list_tasks(configs, "*", lambda config: config.get("dataset_path", "shipped"))
    assert [line.split() for line in lines] == [
        ["NAME", "KIND", "SHOTS", "WHAT", "DATA"],
        ["g", "group", "t,", "plain"],
        ["plain", "task", "0", "generate_until", "here"],
        ["t", "task", "5", "multiple_choice", "shipped"],
    ]
    assert len(catalog.list_tasks(configs, "p*", str)) == 2
    assert catalog.list_tasks(configs, "x*", str) == []


@pytest.mark.parametrize(
    ("given", "found"),
    [("t", ["t"]), ("kind", ["t"]), ("g", ["plain", "t"]), ("*", ["plain", "t"]), ("x", [])],
)
def test_catalog_finds_what_a_name_stands_for(tmp_path, given, found):
    (tmp_path / "t.yaml").write_text("task: t\ntag: kind\n")
    (tmp_path / "g.yaml").write_text("group: g\ntask: [t, h]\n")
    (tmp_path / "h.yaml").write_text("group: h\ntask: [plain]\n")
    (tmp_path / "p.yaml").write_text("task: plain\n")
    configs = catalog.read_all(tmp_path)
    assert sorted(name for name, _ in catalog.tasks_of(configs, given)) == found


def test_catalog_says_once_why_data_is_missing():
    def reach(config):
        raise TrimixError(f"{config['task']} is not there.", "fetch it")

    configs = {name: {"task": name} for name in "abc"}
    *rows, note = catalog.list_tasks(configs, "*", reach)
    assert [row.split()[-2:] for row in rows[1:]] == [["no", "[1]"]] * 3
    assert note == "\n[1] a is not there. (and 2 more like this)\n  -> fetch it"


def test_shipped_folders_exist():
    assert tasks_dir().is_dir()
    assert model_configs_dir().is_dir()
    assert demo_dir().is_dir()


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["check", "--help"],
        ["tasks", "--help"],
        ["tasks"],
        ["sweep", "--help"],
        ["explain", "--help"],
        ["compare", "--help"],
        ["report", "--help"],
        ["export", "--help"],
        ["leaderboard", "--help"],
        ["cpt", "--help"],
        ["new-language", "--help"],
    ],
)
def test_own_commands_import_nothing_heavy(args):
    code = (
        "import atexit, sys; from trimix_lm_eval.cli import main\n"
        "heavy = {'torch', 'lm_eval', 'transformers', 'datasets', 'numpy', 'jinja2'}\n"
        "atexit.register(lambda: print('heavy:', heavy & set(sys.modules)))\n"
        f"sys.exit(main({args!r}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("heavy: set()\n")


def test_help_answers_at_once():
    def seconds():
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "trimix_lm_eval", "--help"], capture_output=True)
        return time.perf_counter() - begin

    assert min(seconds() for _ in range(3)) < 0.5


def test_ctrl_c_while_the_command_is_imported(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    assert entry.main() == 130 and capsys.readouterr().err == "interrupted\n"
