"""Seeded faults of the verl adapter; `make test-verl` runs them, where verl is."""

from __future__ import annotations

from .mutants import Mutant

FOLDER = "tests/integrations/verl"
LOSS, ESTIMATOR, HEAD, PLUGIN, ENGINE = (
    f"{FOLDER}/test_{x}.py" for x in ("loss", "estimator", "head", "plugin", "engine")
)

VERL_MUTANTS = (
    Mutant(
        "integrations/verl/loss.py",
        "        losses = torch.where(mask, chosen(logprobs.flatten(), **per_token).view_as(mask), 0.0)\n",
        "        losses = chosen(log_prob.flatten(), **per_token).view_as(mask)\n",
        "verl: padding reaches the loss",
        f"{LOSS}::test_padding_may_hold_anything",
    ),
    Mutant(
        "integrations/verl/loss.py",
        "            losses = losses * _unmasked(rollout_is_weights, mask)\n",
        "            pass\n",
        "verl: importance weights are dropped",
        f"{LOSS}::test_policy_loss_is_bit_equal_to_verls_own",
    ),
    Mutant(
        "integrations/verl/loss.py",
        "total = agg_loss(losses, response_mask, loss_agg_mode, **config.global_batch_info)",
        "total = agg_loss(losses, response_mask, loss_agg_mode)",
        "verl: the mean is that of a micro-batch",
        f"{LOSS}::test_policy_loss_is_bit_equal_to_verls_own",
    ),
    Mutant(
        "integrations/verl/config.py",
        "        if value != defaults[name]\n",
        "        if False\n",
        "verl: an option without effect goes unsaid",
        f"{LOSS}::test_options_without_effect_are_refused_by_name",
    ),
    Mutant(
        "integrations/verl/config.py",
        "return replace(objective, tau=section.tau) if has_tau and isinstance(objective, GFT) else objective",
        "return objective",
        "verl: tau of the config is not read",
        f"{LOSS}::test_tau_of_the_config_takes_the_place_of_the_one_installed",
    ),
    Mutant(
        "integrations/verl/estimator.py",
        'scale="group" if options.get("norm_adv_by_std_in_grpo", True) else "none"',
        'scale="group"',
        "verl: advantages are scaled whatever the config says",
        f"{ESTIMATOR}::test_advantages_are_those_of_verls_grpo",
    ),
    Mutant(
        "integrations/verl/head.py",
        "replace(transforms, temperature=float(temperature))",
        "replace(transforms)",
        "verl: the temperature is forgotten",
        f"{HEAD}::test_head_by_itself_is_verls_own",
    ),
    Mutant(
        "integrations/verl/head.py",
        "replace(head, bias=bias)",
        "head",
        "verl: the bias of the head is left out",
        f"{HEAD}::test_fused_forward_is_that_of_the_models_own_logits[phi-bias-1.0]",
    ),
    Mutant(
        "integrations/verl/head.py",
        "found = _inside(running.layer, compute, hidden_states.flatten(0, -2))",
        "found = compute(hidden_states.flatten(0, -2), vocab_weights, running.layer.bias)",
        "verl: the weight is taken past FSDP2",
        f"{ENGINE}::test_fused_actor_equals_the_one_through_logits[llama]",
    ),
    Mutant(
        "integrations/verl/transforms.py",
        "    if not torch.equal(received[0], stand_in.model.given):\n",
        "    if False:\n",
        "verl: hidden states changed before the head go unseen",
        f"{HEAD}::test_models_that_would_be_trained_wrongly_are_refused",
    ),
    Mutant(
        "integrations/verl/registration.py",
        "own = _own_forwards.setdefault(type(model), type(model).forward)",
        "own = type(model).forward",
        "verl: the fused forward is taken for the model's own",
        f"{HEAD}::test_model_may_be_fused_twice",
    ),
    Mutant(
        "integrations/verl/head.py",
        '        if "_head_transforms" not in vars(self):\n            return own(self, *args, **kwargs)\n',
        "",
        "verl: a model that is not fused has the fused forward",
        f"{HEAD}::test_model_of_a_fused_class_keeps_its_own_forward",
    ),
    Mutant(
        "integrations/verl_plugin.py",
        "    if not _installed():  # by a module of the user's, with other numbers\n        _install()\n",
        "    _install()\n",
        "verl: the plug-in overrules the user's module",
        f"{PLUGIN}::test_module_of_the_users_has_the_first_word",
    ),
)
