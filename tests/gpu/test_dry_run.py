"""The gpu tests on a CPU: a subset, in a process of its own, at sizes the interpreter bears."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUBSET = (
    "(vocabularies and 50257) or (any_number and float32) or grpo or users or same_bits or nan_row or all_masked or "
    "logprob or in_place "
    "or int32 or 32_steps or sparse_heads or (sparse_gradients and loss)"
)


def test_gpu_tests_pass_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-k", SUBSET, "-p", "no:cacheprovider"]
    environment = {**os.environ, "GFT_KERNELS_DRY_RUN": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 20
