"""The tests in ``on_gpu``, in a process that has a GPU, or seems to (see `tests.support.gpu`)."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from tests.support.running import program

pytestmark = pytest.mark.slow


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler for a simulated GPU")
@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="PyTorch has kernels for a real GPU")
def test_all_of_them():
    plugins = ("-p", "tests.support.gpu.plugin", "-p", "no:randomly", "-p", "no:cacheprovider")
    ended = program("-m", "pytest", "-q", *plugins, "tests/engine/on_gpu", fresh=True, timeout=900)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) > 10
