"""The one environment in which templates are filled."""

import jinja2
import pytest

from trimix_lm_eval.utils import templates


def filled(folder, name, text, **values):
    (folder / name).write_text(text, encoding="utf-8")
    return templates.render(folder / name, {"twice": lambda it: it * 2}, **values)


@pytest.mark.parametrize("name", ["page.html", "page.html.j2"])
def test_html_is_escaped(tmp_path, name):
    assert filled(tmp_path, name, "<b>{{ it }}</b>", it="<i>&") == "<b>&lt;i&gt;&amp;</b>"


@pytest.mark.parametrize("name", ["card.md", "page.md.j2", "cpt.yaml.j2"])
def test_other_texts_are_left_as_they_are(tmp_path, name):
    assert filled(tmp_path, name, "{{ it | twice }}\n", it="<&>") == "<&><&>\n"


def test_a_value_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="it"):
        filled(tmp_path, "card.md", "{{ it }}")


def test_lines_of_blocks_only_leave_no_trace(tmp_path):
    text = "a\n  {% if it %}\nb\n  {% endif %}\nc\n"
    assert filled(tmp_path, "card.md", text, it=True) == "a\nb\nc\n"


def test_one_policy_for_what_a_page_may_load():
    assert templates.security_policy() == "default-src 'none'"
    assert templates.security_policy("img", "style") == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    )
