"""What `import verl` does with the package installed: seen in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOOK = """
import sys, torch
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.utils.experimental.torch_functional import FusedLinearForPPO
from verl.workers.config import FSDPActorConfig
config = FSDPActorConfig(rollout_n=1, ppo_micro_batch_size_per_gpu=1)
if "gft" in POLICY_LOSS_REGISTRY and "gft" in ADV_ESTIMATOR_REGISTRY:
    p, one = torch.tensor([[0.6]]), torch.ones(1, 1)
    value = POLICY_LOSS_REGISTRY["gft"](p.log(), p.log(), one, one, config=config)[0] / -p.log()
    print(f"coefficient {value.item():.3g}, head {FusedLinearForPPO.__name__}")
else:
    print(f"nothing, head {FusedLinearForPPO.__name__}")
"""

OLD = "import importlib.metadata as m; v = m.version; m.version = lambda name: '0.5.0' if name == 'verl' else v(name)"


def python(code, folder=None, **environment):
    path = {"PYTHONPATH": str(folder)} if folder else {}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=os.environ | path | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), [line for line in done.stderr.splitlines() if line.startswith("gft-kernels")]


def test_import_of_verl_registers_everything():
    assert python("import verl" + LOOK) == ("coefficient 0.6, head FusedLinear", [])


def test_plugins_can_be_left_out():
    said = python("import verl" + LOOK, VERL_USE_EXTERNAL_PLUGINS="none")
    assert said == ("nothing, head FusedLinearForPPO", [])


def test_module_of_the_users_has_the_first_word(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from gft_kernels.integrations.verl import install\ninstall(tau=0.5, head=False)\n"
    )
    said = python("import verl" + LOOK, tmp_path, VERL_USE_EXTERNAL_MODULES="mine")
    assert said == ("coefficient 1, head FusedLinearForPPO", [])


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("import sys; sys.modules['verl.models.transformers.monkey_patch'] = None", "ModuleNotFoundError: "),
        ("import sys; sys.modules['gft_kernels.integrations.probe'] = None", "ModuleNotFoundError: "),
        (OLD, "works on verl 0.9 and later, found 0.5.0"),
    ],
    ids=["verl has changed", "gft_kernels is broken", "verl is too old"],
)
def test_plugin_that_fails_is_heard_in_one_line(before, said):
    out, (line,) = python(f"{before}\nimport verl{LOOK}")
    assert out == "nothing, head FusedLinearForPPO"
    assert said in line
    assert "no loss and no advantages 'gft'" in line
    assert "VERL_USE_EXTERNAL_PLUGINS=none" in line


def test_loss_of_that_name_by_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / "other.py").write_text(
        "from verl.trainer.ppo.core_algos import register_policy_loss\n"
        "register_policy_loss('gft')(lambda *_, **__: None)\n"
    )
    code = "import verl; from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as r; print(r['gft'].__module__)"
    out, (line,) = python(code, tmp_path, VERL_USE_EXTERNAL_MODULES="other")
    assert out == "other"
    assert "verl has a policy loss 'gft' already" in line


def test_workers_of_ray_have_it():
    code = """
import verl, ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
@ray.remote
def known():
    import verl
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
    return "gft" in POLICY_LOSS_REGISTRY
print(ray.get(known.remote()))
ray.shutdown()
"""
    assert python(code)[0].splitlines()[-1] == "True"
