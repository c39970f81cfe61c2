"""A model card for a combination of models: a recipe, for there are no weights of its own.

Metadata through huggingface_hub's ModelCardData, the text from `card.md`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimix_lm_eval import __version__
from trimix_lm_eval.analysis.export import model_index, recipe
from trimix_lm_eval.analysis.export.origins import benchmark, is_hub_id, slug, sources_of
from trimix_lm_eval.analysis.export.table import ResultRow, rows_of
from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.utils import templates

_TEMPLATE = Path(__file__).with_name("card.md")


def files(runs: Sequence[Run], model_name: str) -> dict[str, str]:
    """Write the card of one combination of models, and each run's config; content by path.

    Each setting and task is there once; the model's name is the title.
    """
    rows, recipes = rows_of(runs), _recipes(runs)
    texts = {path: recipe.text(run) for path, run in recipes.items()}
    metadata = _metadata(runs, rows, model_name).to_yaml()
    body = _body(runs, rows, recipes, texts, model_name)
    return {"README.md": f"---\n{metadata}\n---\n\n{body}", **texts}


def _recipes(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by the path of their config."""
    named: dict[str, Run] = {}
    for run in runs:
        stem, number = slug(run.label), 2
        while f"recipes/{stem}.yaml" in named:
            stem, number = f"{slug(run.label)}-{number}", number + 1
        named[f"recipes/{stem}.yaml"] = run
    return named


def _metadata(runs: Sequence[Run], rows: Sequence[ResultRow], model_name: str) -> Any:
    from huggingface_hub import ModelCardData

    found = [origin for run in runs for origin in sources_of(run).values()]
    bases = [o.name for o in found if o.commit and is_hub_id(o.name)]
    codes = [benchmark(run, task).language for run in runs for task in run.scores]
    return ModelCardData(
        # The metadata know ISO 639 only: of `ben_Beng` the part before the script.
        language=list(dict.fromkeys(code.partition("_")[0] for code in codes if code)) or None,
        library_name="trimix-lm-eval",
        pipeline_tag="text-generation",
        tags=["trimix", "logit-fusion", "lm-evaluation-harness"],
        base_model=list(dict.fromkeys(bases)) or None,
        model_name=model_name,
        eval_results=model_index.results(rows),
    )


def _body(
    runs: Sequence[Run],
    rows: Sequence[ResultRow],
    recipes: dict[str, Run],
    texts: dict[str, str],
    model_name: str,
) -> str:
    sources = {role: origin for run in runs for role, origin in sources_of(run).items()}
    return templates.render(
        _TEMPLATE,
        {"cell": _cell, "code": _code, "fence": _fence},
        title=model_name,
        sources=sources,
        # The trio of the demo ships with the package.
        local=[r for r, o in sources.items() if not (o.commit or o.name.startswith("demo/"))],
        rows=rows,
        recipes=texts,
        runs=recipes,
        weights={path: _weights(run) for path, run in recipes.items()},
        data=_data(runs),
        truncated=sum(run.truncated for run in runs),
        version=runs[0].trimix.get("version") or __version__,
        lm_eval=", ".join(sorted({row.lm_eval for row in rows if row.lm_eval})),
        transformers=", ".join(sorted({str(run.raw.get("transformers_version")) for run in runs})),
    )


def _weights(run: Run) -> str:
    """Which weights a run used, in a sentence."""
    if run.weights is not None:
        by = ", ".join(f"{role} {w:g}" for role, w in run.weights.by_source().items() if w)
        return f"One point for all documents, given beforehand: {by}."
    parts = []
    for task, counts in ((task, run.chosen(task)) for task in run.scores):
        if not counts:
            continue
        most = sorted(counts.items(), key=lambda item: -item[1])[:3]
        shown = ", ".join(f"{label} ({count})" for label, count in most)
        parts.append(f"{task}: {shown}{', …' if len(counts) > 3 else ''}")
    told = "; ".join(parts)
    return f"Chosen most often, as alpha:beta (documents): {told}." if told else ""


def _data(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """The benchmarks' files with their digests; of local ones not where they lay."""
    found = {}
    for run in runs:
        for name, file in run.data.items():
            place, at, rest = str(file.get("from") or "").partition("@")
            commit = rest.partition("/")[0]
            where = f"{place}@{commit}" if at and is_hub_id(place) else "a local copy"
            found[name] = {"where": where, "sha256": str(file.get("sha256") or "")}
    return dict(sorted(found.items()))


def _cell(value: Any) -> str:
    """A text that stays inside its cell of a Markdown table and is no markup."""
    text = " ".join(str(value).split())
    for sign in "\\`*_[]<>|&$~":
        text = text.replace(sign, f"\\{sign}")
    return text


def _fence(text: str) -> str:
    """Backticks around a block of code, more than any line of it has."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def _code(value: Any) -> str:
    """A text that stays between its backticks, in a cell."""
    return "".join(c for c in str(value) if c.isalnum() or c in ":._-")
