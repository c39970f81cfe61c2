"""Peak memory of choosing weights by a prompt, against its length and the vocabulary.

    python benchmarks/memory.py [--json] [--tokens 512 1024 2048 4096] [--vocab 32000 151936]

Every measurement is a process of its own, which loads a trio, runs ``policy=ppl`` over a prompt and
writes one token. ``mb_chunked`` is its peak beyond weights and KV caches, in MB, by vocabulary and
then by prompt length; ``mb_whole`` the same with all chunking switched off: the prompt in one
forward pass, logits of all its tokens at once. ``growth_chunked`` and ``growth_whole`` are the peak
at the longest prompt over that at the shortest, for the largest vocabulary: 1 is constant.

On a GPU the peak is that of PyTorch's allocator; on a CPU that of the resident set (Linux only).
Caches are counted as what their keys and values need; spare room in their buffers is not deducted.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timing
import torch
from models import PRESETS, Texts, Trio, open_trio

#: More than any prompt has tokens: a chunk holds all of it.
_ALL = 1 << 40
WAYS = ("chunked", "whole")


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("--trio", choices=tuple(PRESETS), default="tiny", help="its shapes")
    parser.add_argument("--models", metavar="FOLDER", help="keep built trios here, and find them")
    parser.add_argument("--tokens", type=timing.count, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--vocab", type=timing.count, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--one", choices=WAYS, help="measure this way, here, the first of each")
    asked = parser.parse_args(argv)
    if asked.one:
        with open_trio(asked.trio, asked.device, asked.models, asked.vocab[0]) as trio:
            print(json.dumps(peak(trio, asked.tokens[0], asked.one == "chunked")))
        return
    del asked.one
    timing.report(measure(asked), asked)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    peaks: dict[str, dict[int, dict[int, float]]] = {way: {} for way in WAYS}
    with contextlib.ExitStack() as stack:
        folder = asked.models or stack.enter_context(tempfile.TemporaryDirectory())
        for vocab in asked.vocab:
            with open_trio(asked.trio, asked.device, folder, vocab):
                for way in WAYS:
                    peaks[way][vocab] = {
                        tokens: in_process(asked, folder, way, vocab, tokens)
                        for tokens in asked.tokens
                    }
    growth = {}
    for way in WAYS:
        by_tokens = peaks[way][max(asked.vocab)]
        least = max(by_tokens[min(by_tokens)], 1.0)
        growth[f"growth_{way}"] = round(by_tokens[max(by_tokens)] / least, 2)
    return {**growth, **{f"mb_{way}": peaks[way] for way in WAYS}}


def in_process(asked: argparse.Namespace, folder: str, way: str, vocab: int, tokens: int) -> float:
    """`peak`, in a process of its own."""
    options = {
        "--trio": asked.trio,
        "--models": folder,
        "--device": asked.device,
        "--vocab": vocab,
        "--tokens": tokens,
        "--one": way,
    }
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, __file__, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # finds what this one finds
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(json.loads(done.stdout))


def peak(trio: Trio, tokens: int, chunked: bool) -> float:
    """Peak memory beyond weights and caches, MB."""
    model = trio.load(policy="ppl")
    ensemble = model.fuser.ensemble
    if not chunked:
        ensemble.chunk_tokens = ensemble.logit_positions = _ALL
    texts = Texts(trio)
    model.generate([texts.text(8)], max_new_tokens=1)  # loads whatever is loaded late
    prompt = texts.text(tokens)
    cached = sum(cache_bytes(source.config, source.dtype) for source in ensemble.sources) * tokens
    for source in ensemble.sources:
        for weights in source.model.parameters():
            weights.sum()  # every page of it is resident from here on
    gc.collect()
    meter = ResidentMemory() if trio.device == "cpu" else CudaMemory(trio.device)
    model.generate([prompt], max_new_tokens=1)
    return round((meter.peak() - cached) / 1e6, 1)


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Of a token: keys and values of all layers."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * head
    return int(values * dtype.itemsize)


class CudaMemory:
    """Peak of PyTorch's allocator from now on, beyond what is allocated now; bytes."""

    def __init__(self, device: str) -> None:
        self.device = device
        torch.cuda.reset_peak_memory_stats(device)
        self.before = torch.cuda.memory_allocated(device)

    def peak(self) -> int:
        """So far."""
        return torch.cuda.max_memory_allocated(self.device) - self.before


class ResidentMemory:
    """Peak of this process's resident set from now on, beyond what is resident now; bytes."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak (man 5 proc)
        self.before = self._read("VmRSS")

    def peak(self) -> int:
        """So far."""
        return self._read("VmHWM") - self.before

    @staticmethod
    def _read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
