"""YAML that people write is read as it is written; all else is one message."""

import pytest

from trimix_lm_eval.utils import yaml_files
from trimix_lm_eval.utils.errors import TrimixError


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", {}),
        ("a: 1\nb: 1e-5", {"a": 1, "b": "1e-5"}),
        ("ratio: 4:1\npoints: [1:0, 0.1:0.9]", {"ratio": "4:1", "points": ["1:0", "0.1:0.9"]}),
        ("filter: !function utils.f", {"filter": "utils.f"}),
        ("x: &x {a: 1}\ny: {<<: *x, a: 2}", {"x": {"a": 1}, "y": {"a": 2}}),
        ("1: a\n'1': b", {1: "a", "1": "b"}),
    ],
)
def test_yaml_is_read_as_it_is_written(tmp_path, text, content):
    (tmp_path / "a.yaml").write_text(text)
    assert yaml_files.read_yaml(tmp_path / "a.yaml") == content


def test_yaml_that_is_none_is_one_message(tmp_path):
    wrong = {"[]": "no mapping", "- a": "no mapping", "a: [": "not YAML", "\xff": "not YAML"}
    for text, said in wrong.items():
        (tmp_path / "a.yaml").write_bytes(text.encode("latin-1"))
        with pytest.raises(TrimixError, match=f"a.yaml is {said}") as refused:
            yaml_files.read_yaml(tmp_path / "a.yaml")
        assert "<unicode string>" not in str(refused.value)
    (tmp_path / "a.yaml").write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(TrimixError, match=r'in ".*a\.yaml", line 3, column'):
        yaml_files.read_yaml(tmp_path / "a.yaml")
    for text in ("a: 1\nb: 2\na: 3\n", "b: 1\nc: [{a: 1, a: 1}]\n", "<<: {a: 1}\na: 1\n'a': 2\n"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(TrimixError, match=r"(?s)found the key 'a' twice.*a\.yaml\", line"):
            yaml_files.read_yaml(tmp_path / "a.yaml")
    with pytest.raises(TrimixError, match="No such file.*\n  -> look again"):
        yaml_files.read_yaml(tmp_path / "none.yaml", "look again")
