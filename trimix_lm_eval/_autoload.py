"""Makes the stock ``lm_eval`` command know the model ``trimix`` and this package's tasks.

lm-eval 0.4.13 discovers no plugins. So a line in ``trimix_lm_eval.pth`` (``.start`` from Python
3.15 on, PEP 829) calls `autoload` whenever Python starts, and what keeps that bearable is this:

* Nothing but ``os`` and ``sys`` is imported until lm-eval itself is: about a millisecond.
* Nothing here raises. A process that has nothing to do with lm-eval must not notice us, and one
  that has must get lm-eval's own errors only.
* lm-eval is changed only at the *end* of the import of the module concerned. Its registry must
  not be filled earlier: `get_model` imports the built-in models only while it is empty, so
  registering ``trimix`` first would make ``hf`` unknown.

``TRIMIX_NO_AUTOLOAD=1`` switches it off. ``python -m trimix_lm_eval`` and the ``trimix`` command
call `install` themselves: for them the variable, and a ``pip install --target`` that skips .pth
files, make no difference.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in the package's __init__: `typing` stays unloaded
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from inspect import Signature
    from types import ModuleType
    from typing import Any

MODEL_NAME = "trimix"
#: Must name the module that defines the class: lm-eval swaps a string for a class only if the
#: two agree exactly.
MODEL_TARGET = "trimix_lm_eval.harness.lm:TriMixLM"


def autoload() -> None:
    """Install the hook, unless ``TRIMIX_NO_AUTOLOAD`` says otherwise. Never raises."""
    if os.environ.get("TRIMIX_NO_AUTOLOAD", "") in ("", "0"):
        install()


def install() -> None:
    """Watch for lm-eval's import, and catch up if it has happened. Never raises."""
    try:
        # By module, not by type: after a reload of this one the old hook is of another class.
        sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != __name__]
        sys.meta_path.insert(0, ImportHook())
    except Exception:
        return
    for name in _AFTER_IMPORT:
        if name in sys.modules:
            _after_import(sys.modules[name])


def register_model(models: ModuleType) -> None:
    """Register ``trimix`` by name; the class is imported when somebody asks for it.

    Args:
        models: The module ``lm_eval.models``, which has filled the registry by now.
    """
    from lm_eval.api.registry import model_registry

    # Taken already: by a later lm-eval that read our entry point, or by the class itself.
    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=MODEL_TARGET)


def extend_task_manager(tasks: ModuleType) -> None:
    """Let ``TaskManager`` look into this package's tasks too.

    They come after lm-eval's own and before the user's ``include_path``, in which a later folder
    overrides an earlier one; ``include_defaults=False`` leaves them out. What lm-eval says of our
    tasks and model to no purpose goes (see `log_filters`).

    Args:
        tasks: The module that defines ``TaskManager``.
    """
    import functools
    import inspect

    manager = tasks.TaskManager
    original = manager.__init__
    if hasattr(original, "__trimix_tasks__"):
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        args, kwargs = _with_our_tasks(signature, (self, *args), kwargs)
        original(*args, **kwargs)

    __init__.__trimix_tasks__ = True  # type: ignore[attr-defined]
    manager.__init__ = __init__
    from trimix_lm_eval.utils import log_filters

    log_filters.install()


def _with_our_tasks(
    signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of ``TaskManager`` with our folder put before ``include_path``.

    Whatever we do not understand is returned as it came, for lm-eval to judge.
    """
    try:
        from trimix_lm_eval.utils.paths import tasks_dir

        bound = signature.bind(*args, **kwargs)
        given = bound.arguments.get("include_path") or []
        folders = list(given) if isinstance(given, (list, tuple)) else [given]
        ours = tasks_dir()
        wanted = bound.arguments.get("include_defaults", True)
        # A folder named twice would be indexed twice, with a warning for every task in it.
        if not wanted or any(ours.samefile(f) for f in folders if os.path.exists(f)):
            return args, kwargs
        if "include_path" in signature.parameters:
            bound.arguments["include_path"] = [ours, *folders]
        return bound.args, bound.kwargs
    except Exception:
        return args, kwargs


#: What to do at the end of which import. ``TaskManager`` lived in ``lm_eval.tasks`` itself once.
_AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "lm_eval.models": register_model,
    "lm_eval.tasks.manager": extend_task_manager,
    "lm_eval.tasks": extend_task_manager,
}


def _after_import(module: ModuleType) -> None:
    """Run the step for a module of lm-eval; a step that fails leaves lm-eval as it was."""
    step = _AFTER_IMPORT.get(getattr(module, "__name__", ""))
    try:
        if step:
            step(module)
    except Exception as error:
        import logging

        logging.getLogger("trimix_lm_eval").debug("hook on %r failed: %r", module, error)


class ImportHook:
    """A meta-path finder that finds nothing itself, and adds a step to the end of some imports."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Ask the finders after us, and wrap the loader that they give for a module of ours."""
        if name not in _AFTER_IMPORT:
            return None
        # Only those after us: another hook of this kind, asking in turn, cannot loop.
        finders = iter(sys.meta_path)
        any(finder is self for finder in finders)
        for finder in finders:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                _wrap_loader(spec)
                return spec
        return None


def _wrap_loader(spec: ModuleSpec) -> None:
    """Make this one import of ``spec`` end with our step.

    The loader stays the object it was, so resources and introspection work as before. The wrapper
    takes itself off when called: an importer of zip files is one loader for many modules.
    """
    loader: Any = spec.loader
    try:
        exec_module = loader.exec_module

        def exec_and_step(module: ModuleType) -> None:
            loader.exec_module = exec_module
            exec_module(module)
            _after_import(module)

        loader.exec_module = exec_and_step
    except Exception:  # no exec_module, or an object that takes no attributes: not hooked
        return
