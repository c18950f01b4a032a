"""Launch configurations: their text, and which one is taken."""

from __future__ import annotations

import pytest
import torch

from gft_kernels import Head
from gft_kernels.engines.triton.configs import INTERPRETED, Config, config_for, parse_config, use_config

from ...helpers.problems import assert_equal_results, fused, make_problem

PROBLEM = make_problem(50, 11, 37)
FIRST, SECOND = Config(16, 16, 16, 1, 1, group=1), Config(32, 16, 64, 1, 1, group=2)


@pytest.mark.parametrize(
    ("text", "config"), [("128x256x64x8x3", Config(128, 256, 64, 8, 3)), ("16x16x16x1x1", Config(16, 16, 16, 1, 1))]
)
def test_parse_config_reads_five_sizes(text, config):
    assert parse_config(text) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, "give rows x vocabulary x depth")
            for text in ("128", "128x256x64x8", "128x256x64x8x3x1", "128x-256x64x8x3", "ax2x3x4x5")
        ),
        *(
            (text, "must be powers of two from 16")
            for text in ("8x64x64x4x2", "64x96x64x4x2", "64x64x0x4x2", "64x64x64x3x2")
        ),
        ("64x64x64x4x0", "stages 1 to 8"),
    ],
)
def test_parse_config_refuses(text, message):
    with pytest.raises(ValueError, match=rf"GFT_KERNELS_CONFIG = '{text}': .*{message}"):
        parse_config(text)


def test_config_for_follows_override_then_environment(monkeypatch):
    def configuration() -> Config:
        return config_for(torch.device("cpu"), torch.bfloat16, Head())

    assert configuration() == INTERPRETED
    monkeypatch.setenv("GFT_KERNELS_CONFIG", "32x16x16x1x1")
    assert configuration() == Config(32, 16, 16, 1, 1)
    with use_config(FIRST):
        assert configuration() == FIRST
        with pytest.raises(ZeroDivisionError), use_config(SECOND):
            _ = 1 / 0
        assert configuration() == FIRST
    assert configuration() == Config(32, 16, 16, 1, 1)
    assert_equal_results(fused(PROBLEM, backend="triton"), fused(PROBLEM, backend="chunked"))


def test_linear_policy_loss_refuses_a_malformed_config(monkeypatch):
    monkeypatch.setenv("GFT_KERNELS_CONFIG", "64x64")
    with pytest.raises(ValueError, match="GFT_KERNELS_CONFIG = '64x64'"):
        fused(PROBLEM, backend="triton")
