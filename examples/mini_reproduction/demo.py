"""The trio that ships in the package, out of the experiment: copied, given data, and checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import check
from demo_items import write_tasks

ROLES = {"large_ins": "large_ins", "small_cpt": "small_cpt_bo", "small_base": "small_base"}
# What a model's folder ships; its card and how it was made stay behind.
SHIPPED = ("*.json", "*.jinja", "*.safetensors")
SEED = 0


def failures(scores: check.Scores) -> list[str]:
    """Names what the demo must show and does not; bits per byte are negative, more is better."""
    found = []
    for language in ("bo", "ug"):
        cell = scores[language, "rolling"]
        orders = {
            "small_base below large_ins": cell["large_ins"] - cell["small_base"],
            "large_ins below small_cpt": cell["small_cpt"] - cell["large_ins"],
            "small_cpt below TriMix (ppl)": cell["ppl"] - cell["small_cpt"],
            "Proxy Tuning below TriMix (ppl)": cell["ppl"] - cell["proxy_tuning"],
        }
        found += [f"{language}: {order}" for order, by in orders.items() if by <= 0]
    return found


def install(models: Path, results: Path, tales: list[str], checkout: Path) -> None:
    """Puts the trio, its numbers and the data of `trimix_demo` into a checkout.

    Args:
        models: The seed's folder of models.
        results: Those of its sweep.
        tales: Tibetan test documents.
        checkout: Root of the repository.

    Raises:
        SystemExit: The trio does not show what it is there to show; nothing was changed.
    """
    scores = check.read([results])[0]
    if failed := failures(scores):
        raise SystemExit(f"the trio does not show what it must: {'; '.join(failed)}")
    place = checkout / "trimix_lm_eval" / "loading" / "demo"
    for role, name in ROLES.items():
        shutil.rmtree(place / role, ignore_errors=True)
        (place / role).mkdir()
        for pattern in SHIPPED:
            for file in (models / name).glob(pattern):
                if file.name != "step.json":
                    shutil.copy(file, place / role)
    measured = {"/".join(cell): methods for cell, methods in scores.items()}
    text = json.dumps(measured, indent=1) + "\n"
    (place / "measured.json").write_text(text, encoding="utf-8")
    write_tasks(tales, checkout / "tasks" / "demo" / "data", SEED)
