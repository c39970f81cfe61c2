"""Loaded by pytest's ``-p`` before anything makes a tensor or asks whether there is a GPU."""

from tests.support import gpu

gpu.install(devices=2)
