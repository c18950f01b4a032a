"""The plug-in: its section of the YAML file, and the trainer that computes its loss."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin

from ..trainer import policy_trainer
from .settings import objective_of


class GFTPlugin(BasePlugin):  # type: ignore[misc]
    """Supervised training on a policy loss, computed in the model's forward.

    In the YAML file::

        plugins:
          - gft_kernels.integrations.axolotl.GFTPlugin
        gft:
          objective: gft  # or dft, sft
          tau: 0.7

    Everything else of the file is axolotl's. Options that would have no effect are refused by name
    when the file is read.
    """

    def get_input_args(self) -> str:
        return f"{__package__}.settings.GFTArgs"

    def get_trainer_cls(self, cfg: Any) -> Any:
        if not cfg.gft:
            return None
        from axolotl.core.trainers import AxolotlTrainer

        return policy_trainer(AxolotlTrainer, objective_of(cfg.gft))

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        if cfg.gft and not hasattr(trainer, "_policy_sums"):
            raise ValueError(
                f"another plug-in has put its trainer in place, {type(trainer).__module__}.{type(trainer).__name__}, "
                "and the loss would be its own: leave it out, or GFTPlugin."
            )
