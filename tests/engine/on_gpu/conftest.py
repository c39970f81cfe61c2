"""Tests of a process with a simulated GPU, run by `test_on_a_simulated_gpu`; no other sees them."""

from __future__ import annotations

import torch

from tests.support.gpu.kernels import SimulatedTensor

if not (torch.cuda.is_available() and type(torch.empty(0, device="cuda")) is SimulatedTensor):
    collect_ignore_glob = ["test_*.py"]
