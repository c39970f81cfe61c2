"""Measures the demo's trio on held-out text and checks that fusion pays.

Everything is computed with the weights as saved (fp16) and loaded in fp32. The best point of the
grid is chosen on the text it is judged on: an upper bound, called `best` here, never a method.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

NAMES = ("large_ins", "small_cpt", "small_base")
GRID = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # the paper's alphas and betas
LENGTH = 256  # tokens per row of the main measurement
MAX_ROWS = 64
LONG = 1024  # tokens per row where contexts beyond the usual training length are checked
LONG_ROWS = 12


def rows_of(stream: Tensor, length: int, count: int, bos: int) -> Tensor:
    """Cuts a token stream into rows that start with BOS.

    Args:
        stream: Token ids, int64 [N].
        length: Tokens per row, BOS included.
        count: Rows wanted at most, spread evenly over the stream.
        bos: Id of BOS.

    Returns:
        Token ids, int64 [R, length].
    """
    body = length - 1
    rows = stream[: len(stream) // body * body].view(-1, body)
    rows = rows[:: max(1, len(rows) // count)][:count]  # [R, length - 1]
    return F.pad(rows, (1, 0), value=bos)


@torch.inference_mode()
def logits_of(model: torch.nn.Module, rows: Tensor, batch: int = 8) -> Tensor:
    """Runs one model over rows.

    Args:
        model: A causal LM in fp32.
        rows: Token ids, int64 [R, T].
        batch: Rows per forward.

    Returns:
        Logits that predict tokens 1 to T-1, fp32 [R, T-1, V].
    """
    return torch.cat([model(input_ids=part).logits[:, :-1] for part in rows.split(batch)])


def token_nll(logits: dict[str, Tensor], rows: Tensor, alpha: float, beta: float) -> Tensor:
    """Scores each token under `alpha * large_ins + beta * small_cpt + rest * small_base`.

    Args:
        logits: fp32 [R, T-1, V] by model name.
        rows: Token ids, int64 [R, T].
        alpha: Weight of large_ins.
        beta: Weight of small_cpt; small_base has what is left to 1, which may be negative.

    Returns:
        Negative log-likelihood in nats, fp32 [R, T-1].
    """
    fused = (
        alpha * logits["large_ins"]
        + beta * logits["small_cpt"]
        + (1 - alpha - beta) * logits["small_base"]
    )  # [R, T-1, V]
    return F.cross_entropy(fused.transpose(1, 2), rows[:, 1:], reduction="none")


def measure_language(models: dict[str, torch.nn.Module], stream: Tensor, bos: int) -> dict:
    """Measures singles, Proxy Tuning, the grid, and long contexts in one language.

    Args:
        models: The trio in fp32, by name.
        stream: Held-out token ids, int64 [N].
        bos: Id of BOS.

    Returns:
        Mean NLL in nats per token: `nll` by method, `best_point` of the grid, and `by_position`
        (per model: tokens 1-255 and 256-1023 of the same rows).
    """
    rows = rows_of(stream, LENGTH, MAX_ROWS, bos)
    logits = {name: logits_of(models[name], rows) for name in NAMES}
    grid = {
        point: token_nll(logits, rows, *point).mean().item()
        for point in tqdm(list(itertools.product(GRID, GRID)), desc="grid", leave=False)
    }
    point = min(grid, key=grid.__getitem__)
    corners = {"large_ins": (1, 0), "small_cpt": (0, 1), "small_base": (0, 0)}
    nll = {name: token_nll(logits, rows, *at).mean().item() for name, at in corners.items()}
    nll |= {"proxy_tuning": grid[1.0, 1.0], "best": grid[point]}

    rows, by_position = rows_of(stream, LONG, LONG_ROWS, bos), {}
    for name in NAMES:
        scores = torch.cat(
            [
                F.cross_entropy(logits_of(models[name], row[None])[0], row[1:], reduction="none")[
                    None
                ]
                for row in rows
            ]
        )  # [R, T-1]
        by_position[name] = {
            "1-255": scores[:, : LENGTH - 1].mean().item(),
            "256-1023": scores[:, LENGTH - 1 :].mean().item(),
        }
    return {"nll": nll, "best_point": list(point), "by_position": by_position}


def measure(
    folder: Path, tokenizer: PreTrainedTokenizerBase, held_out: dict[str, list[str]]
) -> dict[str, Any]:
    """Measures the saved trio.

    Args:
        folder: Holds one folder per model.
        tokenizer: The trio's tokenizer.
        held_out: Unseen documents by language.

    Returns:
        Per language what `measure_language` gives, and `bytes_per_token`.
    """
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        for name in NAMES
    }
    found = {}
    for language, documents in held_out.items():
        text = "\n".join(documents)
        stream = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        found[language] = measure_language(models, stream, tokenizer.bos_token_id)
        found[language]["bytes_per_token"] = len(text.encode()) / len(stream)
    return found


def claims(measured: dict[str, Any]) -> dict[str, bool]:
    """Lists what the demo must show.

    Args:
        measured: What `measure` gives, for "Tibetan" and "English".

    Returns:
        Each claim, and whether it holds.
    """
    bo, en = measured["Tibetan"]["nll"], measured["English"]["nll"]
    long = [
        at["256-1023"] < 1.1 * at["1-255"]
        for language in measured.values()
        for at in language["by_position"].values()
    ]
    return {
        "English: large_ins beats small_base": en["large_ins"] < en["small_base"],
        "Tibetan: large_ins beats small_base": bo["large_ins"] < bo["small_base"],
        "Tibetan: small_cpt beats both": bo["small_cpt"] < min(bo["large_ins"], bo["small_base"]),
        "Tibetan: the best point beats small_cpt": bo["best"] < bo["small_cpt"],
        "Tibetan: the best point beats Proxy Tuning": bo["best"] < bo["proxy_tuning"],
        "contexts up to 1024 tokens do no harm": all(long),
    }


def show(measured: dict[str, Any]) -> str:
    """Formats measurements as Markdown.

    Args:
        measured: What `measure` gives.

    Returns:
        One table of NLL and bits per byte, and one of NLL by position.
    """
    lines = ["| held-out | method | NLL per token (nats) | bits per byte |", "|---|---|---|---|"]
    for language, found in measured.items():
        alpha, beta = found["best_point"]
        for method, nll in found["nll"].items():
            label = f"best point ({alpha}, {beta}), an upper bound" if method == "best" else method
            bits = nll / math.log(2) / found["bytes_per_token"]
            lines.append(f"| {language} | {label} | {nll:.3f} | {bits:.3f} |")
    lines += ["", "| held-out | model | NLL, tokens 1-255 | NLL, tokens 256-1023 |"]
    lines += ["|---|---|---|---|"]
    for language, found in measured.items():
        for name, at in found["by_position"].items():
            lines.append(f"| {language} | {name} | {at['1-255']:.3f} | {at['256-1023']:.3f} |")
    return "\n".join(lines)
