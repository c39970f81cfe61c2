"""What models hold, whatever they can say: what a sentence is about, and how to copy.

For topics, which no model can name, a linear probe: the mean of a sentence's vectors is mapped to
its topic, fitted on the labelled sentences of the training part. A topic that is in the vectors can
be read so. What the embeddings hold, before any layer, is a bag of pieces of words.

For copying, how often a model goes on rightly with a text of random tokens that is repeated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from copying import accuracy as copied
from texts import Corpus, Sentence
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

RIDGE = 0.3  # of the number of sentences, times the variance of a vector's entry


def vectors(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, rows: list[Sentence]
) -> np.ndarray:
    """Means over a sentence's tokens, of the embeddings and the last layer: ``[N, 2, H]``."""
    found = []
    for row in rows:
        ids = torch.tensor([tokenizer(row.text)["input_ids"]])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states  # each [1, T, H]
        found.append(torch.stack([states[0][0].mean(0), states[-1][0].mean(0)]).numpy())
    return np.stack(found)


def accuracy(fitted: np.ndarray, topics: list[str], asked: np.ndarray, right: list[str]) -> float:
    """Percent of sentences whose topic ridge regression reads from their vectors ``[N, H]``."""
    labels = sorted(set(topics))
    mean, spread = fitted.mean(0), fitted.std(0) + 1e-6
    x = np.column_stack([(fitted - mean) / spread, np.ones(len(fitted))])
    z = np.column_stack([(asked - mean) / spread, np.ones(len(asked))])
    y = np.array([[topic == label for label in labels] for topic in topics], dtype=float)
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    read = [labels[i] for i in (z @ weights).argmax(1)]
    return 100 * float(np.mean([one == other for one, other in zip(read, right, strict=True)]))


def write(
    models: dict[str, list[Path]], corpora: dict[str, Corpus], part: str, folder: Path
) -> None:
    """Writes probe.md: percent of topics right by language, and of tokens copied, over the seeds.

    Args:
        models: By role, a folder per seed.
        corpora: By language.
        part: "test" or "dev".
        folder: To write to.
    """
    heads = " | ".join(f"topic, {code}: embeddings, last layer" for code in corpora)
    lines = [f"| % right | {heads} | repeated tokens |"]
    lines.append("|---" * (len(corpora) + 2) + "|")
    usual = [_usual([row.topic for row in one.topics[part]]) for one in corpora.values()]
    lines.append("| the most frequent topic | " + " | ".join(f"{v:.1f}" for v in usual) + " | |")
    for role, places in models.items():
        found = np.mean([_probed(place, list(corpora.values()), part) for place in places], axis=0)
        cells = ["{:.1f}, {:.1f}".format(*pair) for pair in found[:-1].reshape(-1, 2)]
        lines.append(f"| {role} | {' | '.join(cells)} | {found[-1]:.1f} |")
    (folder / "probe.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _usual(topics: list[str]) -> float:
    return 100 * max(topics.count(topic) for topic in set(topics)) / len(topics)


def _probed(place: Path, corpora: list[Corpus], part: str) -> list[float]:
    """Percent right of a model: of each corpus from the embeddings and the last layer; copied."""
    model = LlamaForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    found = []
    for corpus in corpora:
        train, rows = corpus.topics["train"], corpus.topics[part]
        fitted, asked = (vectors(model, tokenizer, some) for some in (train, rows))
        topics, right = ([row.topic for row in some] for some in (train, rows))
        found += [accuracy(fitted[:, i], topics, asked[:, i], right) for i in (0, 1)]
    return [*found, 100 * copied(model, rows=32)]
