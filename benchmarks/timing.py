"""What all programs share: their arguments, sides that take turns, and how results are printed."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch

import trimix_lm_eval


def parser(doc: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """The arguments that all programs take.

    Args:
        doc: The program's docstring; its first line becomes the description.
        rounds: Default of ``--rounds``; None leaves that argument out.
    """
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    if rounds is not None:
        made.add_argument("--rounds", type=count, default=rounds, help="turns of each side")
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def count(text: str) -> int:
    """A whole number from 1, for ``type=`` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def alternate(
    sides: Mapping[str, Callable[[], Any]], rounds: int, device: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Time sides in turn, so that all of them meet the same machine.

    Args:
        sides: What to run, by name.
        rounds: How often each.
        device: Where they run.

    Returns:
        The median of each side's seconds, and what each returned last.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            spent, results[name] = seconds(side, device)
            times[name].append(spent)
    return {name: statistics.median(each) for name, each in times.items()}, results


def seconds(side: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Wall time of one call, and what it returned."""
    settle(device)
    start = time.perf_counter()
    result = side()
    settle(device)
    return time.perf_counter() - start, result


def settle(device: str) -> None:
    """Wait until a GPU has done all it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def report(values: Mapping[str, Any], asked: argparse.Namespace) -> None:
    """Print results, what was asked for, and where they were measured."""
    settings = {name: value for name, value in vars(asked).items() if name != "json"}
    whole = {**values, "settings": settings, "machine": machine(asked.device)}
    if asked.json:
        print(json.dumps(whole))
    else:
        print("\n".join(f"{name}: {value}" for name, value in whole.items()))


def machine(device: str) -> dict[str, Any]:
    """Where and when: processor, threads, GPU, versions, date."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    facts["python"] = platform.python_version()
    for package in ("torch", "transformers", "lm_eval"):
        facts[package] = version(package)
    facts["trimix_lm_eval"] = trimix_lm_eval.__version__
    facts["date"] = datetime.date.today().isoformat()
    return facts


def _processor() -> str:
    """The processor's name, where the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
