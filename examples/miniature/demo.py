"""The trio that ships in the package, and the data of `trimix_demo`, out of the experiment."""

from __future__ import annotations

import shutil
from pathlib import Path

from steps import MARK, Step

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = {"large_ins": "large_ins", "small_cpt": "small_cpt_bo", "small_base": "small_base"}
# What a model's folder ships; its card and how it was made stay behind.
SHIPPED = ("*.json", "*.jinja", "*.safetensors")
KINDS = ("follow", "say", "gloss_to", "finish", "rolling")
PASSAGES = 100  # of running text: with all of them the demo takes half a minute longer


def needed(steps: list[Step], seed: int) -> list[Step]:
    """Picks the steps that the demo takes: no sweep, and no model that does not ship."""
    wanted = {"texts", "tokenizer", "items_test", f"seed{seed}/large_base"}
    wanted |= {f"seed{seed}/{name}" for name in ROLES.values()}
    return [step for step in steps if step.name in wanted]


def install(models: Path, items: Path, checkout: Path) -> None:
    """Puts a seed's trio and the Tibetan test items into a checkout.

    Afterwards ``examples/demo/run.py --record`` writes the table.

    Args:
        models: The seed's folder of models.
        items: The folder of the test items.
        checkout: Root of the repository.
    """
    place = checkout / "trimix_lm_eval" / "loading" / "demo"
    for role, name in ROLES.items():
        shutil.rmtree(place / role, ignore_errors=True)
        (place / role).mkdir()
        for pattern in SHIPPED:
            for file in (models / name).glob(pattern):
                if file.name != MARK:
                    shutil.copy(file, place / role)
    data = checkout / "tasks" / "demo" / "data"
    for old in data.glob("*.jsonl"):
        old.unlink()
    for kind in KINDS:
        for file in (items / "bo").glob(f"{kind}*.jsonl"):
            if file.stem in (kind, f"{kind}_exemplars"):
                lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
                some = lines[:PASSAGES] if kind == "rolling" else lines
                (data / file.name).write_text("".join(some), encoding="utf-8")
