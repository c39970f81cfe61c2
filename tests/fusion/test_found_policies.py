"""How policies are found: of this package, of anybody's module, of installed packages."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.support import policies_page
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.loading import settings
from trimix_lm_eval.loading.provenance import policy_code
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.errors import TrimixError

ROOT = Path(__file__).parent.parent.parent
HEAD = """
import dataclasses
from trimix_lm_eval.fusion.policies import GridPolicy, Policy
from trimix_lm_eval.fusion.policies.perplexity import PromptPerplexity
from trimix_lm_eval.fusion.weights import Weights
"""
HALF = '''
@dataclasses.dataclass(frozen=True)
class Half(Policy):
    """Half of each: the point (1/2, 1/2)."""

    name = "half"
    honesty = "label_free"
    share: float = 0.5

    def points(self):
        return (Weights(self.share, 1 - self.share),)
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(text)`` writes a module that Python can import, and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        name = f"others_{len(list(tmp_path.iterdir()))}_{abs(hash(str(tmp_path))) % 10**6}"
        (tmp_path / f"{name}.py").write_text(HEAD + text, encoding="utf-8")
        importlib.invalidate_caches()
        return name

    return write


def test_every_policy_of_this_package_has_all_that_others_need():
    from trimix_lm_eval.fusion.policies import checks

    for name in policies.names():
        cls = policies.find(name)
        assert cls is policies.ours(name) and cls.name == name
        assert not [part for part in checks.lacking(cls) if "honesty" not in part], name
        assert cls.honesty in policies.HONESTY and cls.honest_when and cls.cost, name


def test_a_class_by_its_place(module):
    place = f"{module(HALF)}:Half"
    built = policies.build(place, share=0.25)
    assert built.choose([]).weights[:2] == (0.25, 0.75)
    assert built.record() == {
        "name": "half",
        "share": 0.25,
        "label": "",
        "honesty": "label_free",
        "cost": "",
        "differing": ["share 0.25"],
        "class": place,
    }
    asked = settings.parse({"pretrained": "x", "policy": place, "share": 0.25})
    assert (asked.policy, asked.policy_options) == (place, {"share": 0.25})
    with pytest.raises(
        TrimixError, match="Unknown option of policy=.*'shar'. Did you mean 'share'"
    ):
        policies.build(place, shar=1)
    assert "half" not in policies.names(), "only installed ones have a name"


def test_a_class_in_a_file(module, tmp_path, monkeypatch):
    """What lies beside it may be imported; later, its place as a module's finds the same class."""
    helper, name = module("share = 0.3"), f"file_{abs(hash(str(tmp_path))) % 10**6}"
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    text = f"{HEAD}from {helper} import share\n{HALF.replace('0.5', 'share')}"
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    (tmp_path / f"{helper}.py").rename(folder / f"{helper}.py")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for place in (f"elsewhere/{name}.py:Half", f"{folder}/{name}.py:Half", f"{name}:Half"):
        built = policies.build(place)
        assert built == policies.build(f"{name}:Half") and built.share == 0.3
        assert built.record()["class"] == f"{name}:Half"


@pytest.mark.parametrize(
    ("file", "message"),
    [("nothing.py", "No such file"), ("json.py", "another module has the name json")],
)
def test_a_file_that_is_not_what_python_imports(tmp_path, monkeypatch, file, message):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "json.py").write_text(HEAD + HALF, encoding="utf-8")
    with pytest.raises(TrimixError, match=f"cannot be imported: .*{message}"):
        policies.find(f"{tmp_path / file}:Half")


def test_the_code_of_a_class_is_part_of_what_a_run_is(module, tmp_path):
    """So that caches and sweeps of before a change are not taken for those of today."""
    name = module(HALF)
    built = policies.build(f"{name}:Half")
    before = policy_code(built)
    assert list(before["policy_code"]) == [f"{name}.py"]
    (tmp_path / f"{name}.py").write_text(HEAD + HALF.replace("0.5", "0.4"), encoding="utf-8")
    assert policy_code(built) != before and policy_code(policies.build("ppl")) == {}


def test_a_class_of_an_installed_package(module, monkeypatch):
    entry = EntryPoint("half", f"{module(HALF)}:Half", policies.ENTRY_POINTS)
    other = EntryPoint("quarter", entry.value, policies.ENTRY_POINTS)
    monkeypatch.setattr(policies, "entry_points", lambda group: [entry, other])
    assert {"half", "ppl"} <= set(policies.names())
    assert policies.build("half", share=0.1).share == 0.1
    assert policies.option_names("half") == ["share"]
    with pytest.raises(TrimixError, match="policy=quarter is 'half' by its class"):
        policies.find("quarter")


@pytest.fixture
def entries(monkeypatch):
    """``entries(name=place…)``: what installed packages offer."""

    def offer(**places: str) -> None:
        found = [EntryPoint(name, place, policies.ENTRY_POINTS) for name, place in places.items()]
        monkeypatch.setattr(policies, "entry_points", lambda group: found)
        policies._tell_shadowed.cache_clear()
        monkeypatch.setattr(errors, "_warned", set())

    yield offer
    policies._tell_shadowed.cache_clear()


def test_a_broken_entry_point_does_not_stand_before_other_mistakes(entries):
    entries(broken="no_such_module_at_all:Broken")
    with pytest.raises(TrimixError, match="Unknown argument 'batch_sise'.*'batch_size'"):
        settings.parse({"pretrained": "x", "batch_sise": 2})
    with pytest.raises(TrimixError, match="alpha is an option of policy=fixed"):
        settings.parse({"pretrained": "x", "alpha": 2})
    with pytest.raises(TrimixError, match="Unknown policy 'brokn'. Did you mean 'broken'"):
        policies.find("brokn")
    with pytest.raises(TrimixError, match="policy=broken cannot be imported") as error:
        policies.find("broken")
    assert "entry point broken = no_such_module_at_all:Broken of an inst" in str(error.value)


def test_an_entry_point_cannot_take_the_name_of_a_policy_of_this_package(module, entries, caplog):
    """Neither silently nor loudly: the one of this package is used, and that is said once."""
    place = f"{module(HALF)}:Half"
    entries(ppl=place)
    mine = policies.ours("ppl")
    assert policies.find("ppl") is mine and policies.names().count("ppl") == 1
    assert policies.find("ppl") is mine
    (record,) = [r for r in caplog.records if "entry point" in r.message]
    assert f"ppl = {place} of an installed package is refused" in record.message


@pytest.mark.parametrize(
    "text", ["import sys; sys.exit(3)", "raise SystemExit", "raise GeneratorExit"]
)
def test_a_module_that_ends_the_program_is_an_error(module, text):
    with pytest.raises(TrimixError, match="cannot be imported: (SystemExit|GeneratorExit)"):
        policies.find(f"{module(text)}:Half")


def test_an_interrupt_while_a_module_is_imported_passes(module):
    with pytest.raises(KeyboardInterrupt):
        policies.find(f"{module('raise KeyboardInterrupt')}:Half")


@pytest.mark.parametrize(
    "name", ["seed", "batch_size", "dtype", "small_dtype", "large_ins_device", "weights_log"]
)
def test_an_option_that_is_an_argument_of_every_run_is_refused(module, name):
    place = f"{module(HALF.replace('share', name))}:Half"
    with pytest.raises(TrimixError, match=f"{place} has an option {name}, which is an argument"):
        settings.parse({"pretrained": "x", "policy": place})


def test_no_option_of_this_package_is_an_argument_of_every_run():
    for name in policies.names():
        assert settings.parse({"pretrained": "x", "policy": name}).policy == name


BODY = HALF.partition("class Half(Policy):")[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("", "cannot be imported: AttributeError: .*has no attribute 'Half'"),
        ("Half = 3", "is no policy: Half is not a subclass of Policy"),
        ("class Half: pass", "is no policy"),
        (HALF.replace('name = "half"', ""), "lacks a part: `name`"),
        (HALF.replace('"half"', '"two words"'), "lacks a part: `name`"),
        (HALF.replace('"half"', '".."'), "lacks a part: `name`.*begins with a letter"),
        (HALF.replace('"half"', '"7th"'), "lacks a part: `name`"),
        (HALF.replace('"half"', '"ppl"'), "a `name` of its own; 'ppl' is taken"),
        (HALF.replace("    share", "    label = None\n    share"), "`label`, a text"),
        (f"class Half(Policy):{BODY}", "the decorator `@dataclasses.dataclass"),
        (HALF.replace('"""Half of each: the point (1/2, 1/2)."""', ""), "a docstring"),
        (HALF.replace('honesty = "label_free"', ""), "`honesty` of its own, one of label_free"),
        (HALF.replace('"label_free"', '"yes"'), "`honesty` of its own"),
        (HALF.replace("    share", '    scope = "prompt"\n    share'), "`scope`, one of run, task"),
        (HALF.replace("    share", '    scope = "sample"\n    share'), "`collector`, which scope"),
        (HALF.replace("    share", '    scope = "token"\n    share'), "`token_weights`, which"),
        (HALF.replace("def points", "def point"), "`points`, which scope 'run' needs"),
        (HALF.replace("share: float = 0.5", "share: float"), "a default for the option `share`"),
        (HALF.replace("share: float", "honest: float"), None),
        (HALF.replace("share: float", "large_base: float"), "another name for the option"),
        (HALF.replace("share: float = 0.5", "share: object = dataclasses.MISSING"), "default"),
    ],
)
def test_what_is_wrong_with_a_policy_is_named(module, text, message):
    place = f"{module(text)}:Half"
    if message is None:
        assert policies.find(place).name == "half"
        return
    with pytest.raises(TrimixError, match=message) as error:
        policies.find(place)
    assert str(error.value).startswith(f"policy={place} ") and "\n  -> " in str(error.value)


@pytest.mark.parametrize("place", ["no_such_module_at_all:Half", "os.path:join", ":x", "json:"])
def test_no_such_place(place):
    with pytest.raises(TrimixError, match="cannot be imported|is no policy"):
        policies.find(place)


def test_what_inherits_a_policy_says_for_itself_whether_it_is_honest(module):
    """A subclass may look at more than its base does."""
    text = '''
@dataclasses.dataclass(frozen=True)
class Mine(PromptPerplexity):
    """Like ppl."""
    name = "mine"
'''
    with pytest.raises(TrimixError, match="`honesty` of its own"):
        policies.find(f"{module(text)}:Mine")


def test_the_classes_are_there_without_torch():
    """Whatever reads results asks them."""
    script = (
        "import sys; from trimix_lm_eval.fusion import policies; "
        "[policies.build(name).record() for name in policies.names()]; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_table_of_the_page_is_what_the_classes_say():
    page = policies_page.PAGE.read_text(encoding="utf-8")
    assert policies_page.render(page) == page, "run: python -m tests.support.policies_page"
    for name in policies.names():
        assert f"| `{name}` |" in page
