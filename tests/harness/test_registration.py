"""The import hook and what it does to lm-eval; installed copies are tested in test_packaging."""

import importlib
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from trimix_lm_eval import _autoload
from trimix_lm_eval.utils.paths import tasks_dir

DEFAULTS = "lm-eval's own tasks"


class TaskManager:
    """Stands for lm-eval's, which takes fifteen seconds to read every task it ships."""

    def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
        self.folders = [DEFAULTS] if include_defaults else []
        if include_path:
            self.folders += include_path if isinstance(include_path, list) else [include_path]


@pytest.fixture
def hooked(monkeypatch, tmp_path):
    """Import hook on a module of our own; gives its folder and the list of steps that ran."""
    steps = []
    monkeypatch.setattr(_autoload, "_AFTER_IMPORT", {"watched": lambda m: steps.append(m.VALUE)})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(tmp_path)
    _autoload.install()
    yield tmp_path, steps
    sys.modules.pop("watched", None)


@pytest.fixture
def manager():
    """A fresh stand-in with our folder let in."""
    module = SimpleNamespace(TaskManager=type("TaskManager", (TaskManager,), {}))
    _autoload.extend_task_manager(module)
    return module.TaskManager


def hooks():
    return [f for f in sys.meta_path if type(f).__name__ == "ImportHook"]


def test_step_runs_at_the_end_of_the_import_and_of_a_reload(hooked):
    folder, steps = hooked
    (folder / "watched.py").write_text("VALUE = 'set by the module'\n")
    module = importlib.import_module("watched")
    assert steps == ["set by the module"]
    importlib.reload(module)
    assert len(steps) == 2
    assert Path(module.__file__).parent == folder
    assert type(module.__loader__).__name__ == "SourceFileLoader"


def test_finding_without_importing_runs_nothing(hooked):
    folder, steps = hooked
    (folder / "watched.py").write_text("VALUE = 1\n")
    assert importlib.util.find_spec("watched") is not None
    assert steps == []


def test_module_from_a_zip_file(hooked, monkeypatch):
    folder, steps = hooked
    with zipfile.ZipFile(folder / "lib.zip", "w") as archive:
        archive.writestr("watched.py", "VALUE = 'zipped'\n")
        archive.writestr("neighbour.py", "VALUE = 'other'\n")
    monkeypatch.syspath_prepend(folder / "lib.zip")
    importlib.util.find_spec("watched")  # leaves a wrapper on the loader that both share
    importlib.import_module("neighbour")
    assert steps == []
    importlib.import_module("watched")
    assert set(steps) == {"zipped"}


def test_loader_that_cannot_be_wrapped_still_imports(hooked, monkeypatch):
    class Loader:
        __slots__ = ()

        def create_module(self, spec):
            return None

        def exec_module(self, module):
            module.VALUE = "slotted"

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return importlib.machinery.ModuleSpec(name, Loader()) if name == "watched" else None

    sys.meta_path.append(Finder)
    assert importlib.import_module("watched").VALUE == "slotted"


def test_failing_step_does_not_break_the_import(hooked, monkeypatch):
    folder, _ = hooked

    def fail(module):
        raise RuntimeError("no such registry")

    _autoload._AFTER_IMPORT["watched"] = fail
    (folder / "watched.py").write_text("VALUE = 1\n")
    assert importlib.import_module("watched").VALUE == 1


def test_missing_module_stays_missing(hooked):
    with pytest.raises(ModuleNotFoundError, match="watched"):
        importlib.import_module("watched")


def test_installing_again_leaves_one_hook(hooked):
    _autoload.install()
    assert len(hooks()) == 1


def test_module_imported_earlier_gets_its_step_at_once(hooked, monkeypatch):
    _, steps = hooked
    monkeypatch.setitem(sys.modules, "watched", SimpleNamespace(__name__="watched", VALUE="early"))
    _autoload.install()
    assert steps == ["early"]


@pytest.mark.parametrize(("value", "installed"), [("1", 0), ("yes", 0), ("0", 1), ("", 1)])
def test_environment_variable(monkeypatch, value, installed):
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if f not in hooks()])
    monkeypatch.setenv("TRIMIX_NO_AUTOLOAD", value)
    _autoload.autoload()
    assert len(hooks()) == installed


def test_name_that_is_taken_is_left_alone(monkeypatch):
    from lm_eval.api import registry

    fresh = registry.Registry("model")
    monkeypatch.setattr(registry, "model_registry", fresh)
    _autoload.register_model(SimpleNamespace())
    assert dict(fresh.items()) == {"trimix": "trimix_lm_eval.harness.lm:TriMixLM"}
    _autoload.register_model(SimpleNamespace())

    other = registry.Registry("model")
    other.register("trimix", target="somebody.elses:Model")
    monkeypatch.setattr(registry, "model_registry", other)
    _autoload.register_model(SimpleNamespace())
    assert dict(other.items()) == {"trimix": "somebody.elses:Model"}


@pytest.mark.parametrize(
    ("args", "kwargs", "folders"),
    [
        ((), {}, [DEFAULTS, tasks_dir()]),
        ((), {"include_path": "mine"}, [DEFAULTS, tasks_dir(), "mine"]),
        ((None, "mine"), {"metadata": {}}, [DEFAULTS, tasks_dir(), "mine"]),
        ((), {"include_path": ["a", Path("b")]}, [DEFAULTS, tasks_dir(), "a", Path("b")]),
        ((), {"include_defaults": False}, []),
        ((), {"include_defaults": False, "include_path": "mine"}, ["mine"]),
        ((), {"include_path": tasks_dir()}, [DEFAULTS, tasks_dir()]),
    ],
)
def test_our_tasks_come_between_the_defaults_and_the_users(manager, args, kwargs, folders):
    assert manager(*args, **kwargs).folders == folders


def test_task_manager_is_wrapped_once_and_keeps_its_signature(manager):
    once = manager.__init__
    _autoload.extend_task_manager(SimpleNamespace(TaskManager=manager))
    assert manager.__init__ is once
    assert once.__wrapped__ is TaskManager.__init__
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        manager(nonsense=1)


def test_task_manager_of_another_version():
    class Other:
        def __init__(self, *paths, **options):
            self.given = paths, options

    _autoload.extend_task_manager(SimpleNamespace(TaskManager=Other))
    assert Other("a", b=1).given == (("a",), {"b": 1})
