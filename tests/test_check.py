"""The commands .check and .env: right machines pass; wrong gradients and changing bits do not."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import env
from gft_kernels.check import __main__ as command
from gft_kernels.check import checks
from gft_kernels.check.cases import CASES
from gft_kernels.check.cases import results as right_results
from gft_kernels.check.config_search import CONFIGS
from gft_kernels.check.problem import make_problem


def test_versions_name_what_a_report_needs():
    found = env.versions()
    assert {"gft-kernels", "python", "torch", "triton", "transformers", "driver"} <= found.keys()
    assert found["torch"] == torch.__version__
    assert all(isinstance(value, str) and value for value in found.values())


def test_version_of_a_missing_package_is_none():
    assert env.version("no-such-package") == "none"


def test_check_passes_on_a_cpu(capsys):
    assert command.main(["--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("PASS  parity") == 3 * len(CASES)
    assert out.count("10 of 10 runs have the same bits") == 3
    assert "FAIL" not in out
    assert "forward and backward" in out


@pytest.fixture
def problem():
    return make_problem(160, 16, 101, torch.float32, "cpu")


def wrong(factor):
    def results(case, problem, backend, dtype=None):
        loss, logprobs, hidden, weight = right_results(case, problem, backend, dtype)
        return [loss, logprobs, hidden, weight * factor() if backend == "auto" else weight]

    return results


def test_parity_fails_on_a_gradient_a_thousandth_off(problem, monkeypatch):
    assert checks.parity("gft, group rewards", problem)[0]
    monkeypatch.setattr(checks, "results", wrong(lambda: 1.001))
    assert not checks.parity("gft, group rewards", problem)[0]


def test_determinism_fails_on_changing_bits(problem, monkeypatch):
    monkeypatch.setattr(checks, "results", wrong(lambda: 1 + 1e-3 * torch.rand(())))
    assert checks.determinism("grpo + kl", problem) == (False, "1 of 10 runs have the same bits")


def test_a_check_that_raises_is_a_failure(capsys):
    def broken():
        raise RuntimeError("out of shared memory")

    assert not checks.report("parity", broken)
    assert "FAIL" in (out := capsys.readouterr().out)
    assert "out of shared memory" in out


def test_parity_of_the_triton_kernels(problem, monkeypatch):
    monkeypatch.setattr(
        checks,
        "results",
        lambda case, p, backend, dtype=None: right_results(case, p, backend.replace("auto", "triton"), dtype),
    )
    for case in CASES:
        assert checks.parity(case, problem)[0], case


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without a device")
@pytest.mark.parametrize("arguments", [["--config-search"], ["--device", "cuda"]])
def test_what_needs_a_device_says_so(arguments, capsys):
    assert command.main(arguments) == 1
    assert "CUDA or ROCm device" in capsys.readouterr().out


def test_every_searched_configuration_parses():
    from gft_kernels.engines.triton.configs import parse_config

    assert len({parse_config(text) for text in CONFIGS}) == len(CONFIGS)
