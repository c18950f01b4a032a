"""--device and --backend: what this machine lacks is refused before anything is read."""

from dataclasses import replace

import pytest
import torch

from gft.settings.config import EMBEDDED
from gft.settings.options import OptionError, check_device, check_engine
from gft.settings.parts import ReuseConfig


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu0", "torch does not know: give cuda or cpu"),
        ("", "torch does not know"),
        ("meta", "this machine does not have"),
        pytest.param(
            "cuda", "this machine does not have", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")
        ),
    ],
)
def test_check_device_refuses_what_this_machine_lacks(name, words):
    with pytest.raises(OptionError, match=f"--device is {name!r}, which {words}"):
        check_device(name)


def test_check_device_takes_what_is_there():
    check_device("cpu")
    check_device(None)


def test_check_engine_tries_every_engine_but_the_one_that_fits_by_itself(monkeypatch):
    tried = []
    monkeypatch.setattr(
        "gft.settings.options.linear_policy_loss", lambda *args, **kwargs: tried.append(kwargs["backend"].name)
    )
    for backend in ("auto", "eager", "chunked", "triton"):
        check_engine(replace(EMBEDDED, backend=backend))
    assert tried == ["eager", "chunked", "triton"]


@pytest.mark.parametrize("objective", ["gspo", "gft", "sft"])
@pytest.mark.parametrize("kl", [None, 0.1])
def test_check_engine_takes_every_objective(objective, kl):
    check_engine(replace(EMBEDDED, objective=objective, backend="chunked", reuse=ReuseConfig(kl=kl)))


def test_check_engine_takes_what_runs():
    for backend in ("eager", "chunked"):
        check_engine(replace(EMBEDDED, backend=backend, sparse=1e-3, device="cpu"))


def test_check_engine_passes_the_engines_own_words_on(monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("needs CUDA or ROCm tensors, got cpu")

    monkeypatch.setattr("gft.settings.options.linear_policy_loss", refuse)
    with pytest.raises(OptionError, match="--backend is 'triton', which does not run on cpu: needs CUDA or ROCm"):
        check_engine(replace(EMBEDDED, backend="triton", device="cpu"))
