"""docs/settings.md says what the declarations say, of every option that there is."""

from __future__ import annotations

import dataclasses

from tests.support.settings_page import PAGE, render
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.loading.settings import RUN_OPTIONS, Settings
from trimix_lm_eval.loading.source_spec import MODEL_OPTIONS, SOURCE_OPTIONS, SourceSpec
from trimix_lm_eval.sweep import block
from trimix_lm_eval.training.cpt import config
from trimix_lm_eval.utils.options import options_of


def test_the_page_is_what_the_declarations_make():
    made = "run: python -m tests.support.settings_page"
    assert PAGE.read_text(encoding="utf-8") == render(), made


def test_every_option_is_on_the_page_in_whole_sentences():
    page = render()
    of_policies = {
        one.name for name in policies.names() for one in options_of(type(policies.build(name)))
    }
    options = (*MODEL_OPTIONS, *SOURCE_OPTIONS, *RUN_OPTIONS, *block.OPTIONS, *config.OPTIONS)
    for one in options:
        assert one.help[0].isupper() or one.help[0] in "`", one.name
        assert one.help.endswith(".") and one.type, one.name
    for name in {one.name for one in options} | of_policies:
        assert f"\n| `{name}` | " in page, name


def test_nothing_of_a_run_is_undeclared():
    declared = {one.name for one in (*SOURCE_OPTIONS, *RUN_OPTIONS)}
    fields = {one.name for one in (*dataclasses.fields(SourceSpec), *dataclasses.fields(Settings))}
    assert fields - declared == {"name", "path", "sources", "policy", "policy_options"}
