"""docs/settings.md, made from the declarations of all options.

python -m tests.support.settings_page    # after an option has changed: writes the page anew
"""

from __future__ import annotations

from pathlib import Path

from tests.support.option_table import markdown_table
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.loading.settings import RUN_OPTIONS
from trimix_lm_eval.loading.source_spec import MODEL_OPTIONS, SOURCE_OPTIONS
from trimix_lm_eval.sweep import block
from trimix_lm_eval.training.cpt import config
from trimix_lm_eval.utils.options import Option, options_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "settings.md"


def render() -> str:
    """The page."""
    parts = [_HEAD, "## Models\n\n", markdown_table(MODEL_OPTIONS, "argument"), _SOURCES]
    parts += [markdown_table(SOURCE_OPTIONS, "argument"), _RUN]
    parts += [markdown_table(RUN_OPTIONS, "argument"), _POLICIES]
    parts += [markdown_table(_policy_options(), "argument")]
    parts += [_SWEEP, markdown_table(block.OPTIONS, "key")]
    parts += [_TRAINING, markdown_table(config.OPTIONS, "key")]
    return "".join(parts)


def _policy_options() -> list[Option]:
    """The options of all policies, each once, with the policies that take it."""
    takers: dict[Option, list[str]] = {}
    for name in policies.names():
        for one in options_of(type(policies.build(name))):
            takers.setdefault(one, []).append(name)
    return [
        one._replace(help=f"{one.help.rstrip('.')}. Of {_listed(names)}.")
        for one, names in takers.items()
    ]


def _listed(names: list[str]) -> str:
    return ", ".join(f"`policy={name}`" for name in names)


_HEAD = """\
# Settings

Every option with its type, its default and what it does. The tables are made from the declarations
in the code, and a test compares them; so do not edit this page, but the declaration, and then run
`python -m tests.support.settings_page`.

`--model_args` of `lm_eval`, `trimix check` and `trimix explain` take the arguments as
`name=value,name=value`, a run config takes them as a mapping under `model_args`, and Python as
`TriMix.from_pretrained("demo", name=value)`. A name that nothing takes and a value that an option
does not take are refused, with what is accepted.

"""

_SOURCES = """
How each model is loaded. A plain name means all of them; `large_` and `small_` in front of it mean
the two of that size, `large_ins_`, `large_base_`, `small_cpt_` and `small_base_` one. The most
specific name wins: `dtype=float32,small_dtype=bfloat16,small_base_dtype=float16` gives small_cpt
bfloat16.

"""

_RUN = """
## The run

"""

_POLICIES = """
## Policies

`policy` (default: `ppl`) names who chooses the weights of the sources; see [policies](policies.md).
Each has options of its own:

"""

_SWEEP = """
## The block of a sweep

Under `sweep:` in a run config; see [sweeps](sweeps.md). A key holds one value or a list.

"""

_TRAINING = """
## The config of a training

The file of `trimix cpt`; see [training](training.md).

"""

if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
