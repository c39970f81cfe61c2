"""With this folder in PYTHONPATH every Python has a simulated GPU, and its child processes, too."""

from tests.support import gpu

gpu.install(devices=2)
