"""What a wheel holds, and what an environment can do in which it was installed.

Environments borrow the libraries of the one that runs the tests through a .pth file, so that
installing into them takes a second. Python does not process .pth files found that way: ours is
read only where it was really installed.
"""

import os
import pkgutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import lm_eval_tasks
from trimix_lm_eval import __version__

pytest.importorskip("hatchling", reason="pip install -e '.[dev]'")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent


def python(interpreter, *args, cwd, **env):
    """Run an interpreter away from the checkout; its output, with errors if it fails."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TRIMIX"))}
    return subprocess.run(
        [interpreter, *map(str, args)],
        cwd=cwd,
        env={**inherited, "HF_HUB_OFFLINE": "1", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def pip(*args, into=sys.executable):
    """Run this environment's pip, without an index."""
    flags = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", into, args[0], *flags, *map(str, args[1:])],
        check=True,
    )


def environment(folder, *requirement):
    """Make a virtual environment and install into it, if anything; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    interpreter = folder / "bin" / "python"
    paths = {name: sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site_packages(folder) / "outer.pth").write_text("\n".join(dict.fromkeys(paths.values())))
    if requirement:
        pip("install", *requirement, into=interpreter)
    return interpreter


def site_packages(folder):
    return next((folder / "lib").glob("python*/site-packages"))


def build(source, target, kind):
    """Build the wheel or sdist of a source tree; returns the file."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target],
        cwd=source,
        check=True,
        capture_output=True,
    )
    return next(target.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("installed"), wheel)


@pytest.fixture(scope="module")
def editable(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("editable"), "-e", ROOT)


def test_wheel_holds_package_tasks_and_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"trimix_lm_eval.pth", "trimix_lm_eval.start"} <= names
    for folder in ("tasks", "model_configs", "trimix_lm_eval"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_dir() or "__pycache__" in path.parts or path.suffix in (".pth", ".start"):
                continue
            inside = path.relative_to(ROOT).as_posix()
            assert (inside if folder == "trimix_lm_eval" else f"trimix_lm_eval/{inside}") in names
    assert not [n for n in names if "__pycache__" in n or n.startswith("tests/")]


def test_wheel_names_its_licences_and_holds_their_texts(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"trimix_lm_eval-{__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        texts = metadata.get_all("License-File")
        assert {f"{info}/licenses/{text}" for text in texts} <= set(archive.namelist())
    assert metadata["License-Expression"] == "Apache-2.0 AND CC-BY-4.0 AND CC-BY-SA-4.0"
    assert {Path(text).name for text in texts} == {
        *("LICENSE", "LICENSE-nanhai.txt", "LICENSE-cc-by-sa-4.0.txt")
    }


def test_only_the_extra_asks_for_what_training_needs(wheel):
    """Nor does a dependency's extra: lm-eval's [hf] would bring peft to everybody."""
    with zipfile.ZipFile(wheel) as archive:
        name = f"trimix_lm_eval-{__version__}.dist-info/METADATA"
        metadata = Parser().parsestr(archive.read(name).decode())
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    everywhere = {one.name: one for one in required if not one.marker or "extra" not in str(one)}
    assert {"lm-eval", "torch", "transformers", "accelerate"} <= set(everywhere)
    assert not {"peft", "tensorboard"} & set(everywhere)
    assert not any(one.extras for one in everywhere.values())
    cpt = {one.name for one in required if one.marker and 'extra == "cpt"' in str(one.marker)}
    assert cpt == {"peft", "tensorboard"}


def test_sdist_builds_the_same_wheel(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build(tmp_path / f"trimix_lm_eval-{__version__}", tmp_path / "again", "wheel")
    assert again.read_bytes() == wheel.read_bytes()


def test_sdist_has_the_pages_that_the_readme_links_to(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in names


def test_start_file_names_a_callable():
    line = (ROOT / "trimix_lm_eval" / "trimix_lm_eval.start").read_text().strip()
    assert callable(pkgutil.resolve_name(line))


#: What a process tells of lm-eval: whether it knows us, both models, then where tasks come from.
KNOWN = """
import lm_eval.models, lm_eval.tasks
from lm_eval.api.registry import get_model, model_registry
print("trimix" in model_registry, hasattr(lm_eval.tasks.TaskManager.__init__, "__wrapped__"))
print(get_model("hf").__name__, get_model("trimix").__name__, len(model_registry) > 30)
"""
TASKS = """
from lm_eval.tasks import TaskManager
print(TaskManager(include_defaults=False).all_tasks)
index = TaskManager(include_path="mine").task_index
for name in ("hellaswag", "trimix_demo_finish", "trimix_demo_rolling"):
    print(index[name].yaml_path)
"""


@pytest.fixture(scope="module")
def told(installed, tmp_path_factory):
    """What an installed package makes lm-eval say, and the folder of tasks that the user has."""
    folder = tmp_path_factory.mktemp("user")
    mine = folder / "mine"
    mine.mkdir()
    (mine / "mine.yaml").write_text("task: trimix_demo_rolling\ndataset_path: json\n")
    site = lm_eval_tasks.sitecustomize(folder / "site")
    ran = python(installed, "-c", KNOWN + TASKS, cwd=folder, PYTHONPATH=site)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines(), mine


def test_stock_lm_eval_knows_trimix_beside_its_own(told, editable, tmp_path):
    ran = python(editable, "-c", KNOWN, cwd=tmp_path)
    for lines in (told[0], ran.stdout.splitlines()):
        assert lines[:2] == ["True True", "HFLM TriMixLM True"], ran.stderr


def test_class_imported_first_does_not_hide_the_others(installed, tmp_path):
    code = """
import trimix_lm_eval.harness.lm
from lm_eval.api.registry import get_model
print(get_model("trimix") is trimix_lm_eval.harness.lm.TriMixLM, get_model("hf").__name__)
"""
    ran = python(installed, "-c", code, cwd=tmp_path, TRIMIX_NO_AUTOLOAD="1")
    assert ran.stdout.split() == ["True", "HFLM"], ran.stderr


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_start_imports_the_hook_and_nothing_else(kind, request, tmp_path):
    interpreter = request.getfixturevalue(kind)
    code = "import sys; print(*sys.modules)"
    with_hook = set(python(interpreter, "-c", code, cwd=tmp_path).stdout.split())
    off = {"TRIMIX_NO_AUTOLOAD": "1"}
    alone = set(python(interpreter, "-S", "-c", code, cwd=tmp_path).stdout.split())
    ours = {"trimix_lm_eval", "trimix_lm_eval._autoload"}
    assert ours <= with_hook
    assert not {"torch", "lm_eval", "transformers", "logging", "typing"} & (with_hook - alone)
    meta_path = "import sys; print(*(type(f).__name__ for f in sys.meta_path))"
    assert "ImportHook" in python(interpreter, "-c", meta_path, cwd=tmp_path).stdout
    assert "ImportHook" not in python(interpreter, "-c", meta_path, cwd=tmp_path, **off).stdout


def test_switched_off(installed, told, tmp_path):
    known = "\n".join(KNOWN.splitlines()[:4])
    ran = python(installed, "-c", known, cwd=tmp_path, TRIMIX_NO_AUTOLOAD="1")
    assert ran.stdout.split() == ["False", "False"], ran.stderr
    assert told[0][0] == "True True"


def test_task_manager_finds_our_tasks_and_the_users_win(told):
    (*_, none, stock, ours, users), mine = told
    assert none == "[]"
    assert "lm_eval/tasks/hellaswag" in stock
    assert "trimix_lm_eval/tasks/" in ours
    assert Path(users) == mine / "mine.yaml" or users == "mine/mine.yaml"


def test_half_uninstalled_package_is_silent(wheel, tmp_path):
    """Its hook gone, then damaged, then no package at all."""
    interpreter = environment(tmp_path / "env", wheel)
    package = site_packages(tmp_path / "env") / "trimix_lm_eval"
    hook = package / "_autoload.py"
    for damage in (
        hook.unlink,
        lambda: hook.write_text("def (:\n"),
        lambda: package.rename(tmp_path / "gone"),
    ):
        damage()
        ran = python(interpreter, "-c", "import lm_eval.models; print('fine')", cwd=tmp_path)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "fine\n", "")


def test_target_install_works_through_the_module(wheel, tmp_path):
    pip("install", "--target", tmp_path / "lib", wheel)
    interpreter = environment(tmp_path / "env")
    code = """
import lm_eval.__main__, sys
from lm_eval.api.registry import model_registry
def report():
    import lm_eval.models
    print("trimix" in model_registry, sys.argv[1:])
lm_eval.__main__.cli_evaluate = report
import runpy
sys.argv = ["-m", "--model", "trimix"]
runpy.run_module("trimix_lm_eval", run_name="__main__")
"""
    path = {"PYTHONPATH": str(tmp_path / "lib"), "TRIMIX_NO_AUTOLOAD": "1"}
    ran = python(interpreter, "-c", code, cwd=tmp_path, **path)
    assert ran.stdout == "True ['run', '--model', 'trimix']\n", ran.stderr
    listed = python(interpreter, "-m", "trimix_lm_eval", "tasks", cwd=tmp_path, **path)
    assert "trimix_demo" in listed.stdout


def test_what_only_training_needs_is_in_its_extra():
    tomllib = pytest.importorskip("tomllib", reason="Python >= 3.11 reads pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base, extras = project["dependencies"], project["optional-dependencies"]
    for name in ("peft", "tensorboard"):
        assert not [one for one in base if one.startswith(name)]
        assert [one for one in extras["cpt"] if one.startswith(name)]
    assert "trimix-lm-eval[report,cpt]" in extras["dev"]
    named = "\n".join([*base, *(one for some in extras.values() for one in some)])
    assert "pandas" not in named
