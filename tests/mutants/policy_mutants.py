"""Seeded faults of what is trained, and how: decay, rates, dropout, adapters."""

from __future__ import annotations

from .mutants import Mutant

OPTIM, LAYERS = "tests/gft/test_optim.py", "tests/gft/test_layers.py"
LORA, LIGER = "tests/gft/test_lora.py", "tests/gft/test_liger.py"

POLICY_MUTANTS = (
    Mutant(
        "gft/optim.py",
        "return parameter.ndim >= 2 and not",
        "return not",
        "norms decay",
        f"{OPTIM}::test_optimizer_step_shrinks_matrices_and_leaves_norms",
    ),
    Mutant(
        "gft/runs/moments.py",
        "        for i, name in enumerate(names(optimizer))\n",
        "        for i, (name, _) in enumerate(model.named_parameters())\n",
        "moments are saved under the names of other weights",
        f"{OPTIM}::test_restore_gives_every_weight_its_own_moments",
    ),
    Mutant(
        "gft/optim.py",
        "done = (step - top) / (steps + 1 - top)",
        "done = step / (steps + 1)",
        "a schedule does not know of the warm-up",
        f"{OPTIM}::test_learning_rate_falls_to_its_minimum_after_the_last_step",
    ),
    Mutant(
        "gft/optim.py",
        "if p.requires_grad]",
        "]",
        "what is frozen is in the optimiser",
        f"{OPTIM}::test_make_optimizer_takes_what_is_trained",
    ),
    Mutant(
        "gft/model/layers.py",
        "    model.train(dropout)\n",
        "    model.train()\n",
        "the model trains with dropout that its samples did not have",
        f"{LAYERS}::test_learn_without_dropout_is_the_network_that_samples",
    ),
    Mutant(
        "gft/model/layers.py",
        "before, layer.training = layer.training, dropout",
        "before, layer.training = layer.training, True",
        "a layer that is computed again has the dropout of its own forward",
        f"{LAYERS}::test_learn_without_dropout_is_the_network_that_samples",
    ),
    Mutant(
        "gft/model/layers.py",
        "            layer.training = True  # transformers",
        "            pass  # transformers",
        "nothing is computed again without dropout",
        f"{LAYERS}::test_checkpointing_computes_layers_again",
    ),
    Mutant(
        "gft/model/layers.py",
        "use_reentrant=False)",
        "use_reentrant=True)",
        "layers behind frozen embeddings have no gradient",
        f"{LAYERS}::test_checkpointing_reaches_layers_behind_frozen_embeddings",
    ),
    Mutant(
        "gft/model/lora.py",
        "layer.base_layer.weight + layer.get_delta_weight",
        "layer.base_layer.weight.add_(1) + layer.get_delta_weight",
        "saving changes the model that is trained",
        f"{LORA}::test_save_model_merges_and_leaves_the_live_model_alone",
    ),
    Mutant(
        "gft/model/lora.py",
        "        config.save_pretrained(folder)\n",
        "",
        "a head with factors of its own is saved as the embedding's",
        f"{LORA}::test_save_model_merges_and_leaves_the_live_model_alone[head]",
    ),
    Mutant(
        "gft/model/lora.py",
        "    torch.manual_seed(seed)  # of A\n",
        "",
        "factors depend on what was drawn before",
        f"{LORA}::test_add_lora_is_seeded",
    ),
    Mutant(
        "gft/model/policy.py",
        "            load_adapter(policy.adapter, adapter)\n",
        "            pass\n",
        "a run goes on with new factors",
        f"{LORA}::test_resume_of_a_lora_run_is_bitwise[4]",
    ),
    Mutant(
        "gft/reference.py",
        "Frozen(copy.deepcopy(policy))",
        "Frozen(policy)",
        "the reference policy learns",
        f"{LORA}::test_reference_is_the_model_that_the_run_began_with[whole]",
    ),
    Mutant(
        "gft/reference.py",
        "        with self.policy.adapter.disable_adapter():\n            return",
        "        return",
        "the reference policy has the factors",
        f"{LORA}::test_reference_is_the_model_that_the_run_began_with[lora]",
    ),
    Mutant(
        "gft/logprobs.py",
        "with evaluating(policy.model):",
        "with torch.no_grad():",
        "the reference policy has dropout",
        f"{LORA}::test_reference_is_the_model_that_the_run_began_with[head]",
    ),
    Mutant(
        "gft/model/liger.py",
        "**dict.fromkeys(losses, False)",
        "",
        "Liger's loss stands in the place of ours",
        f"{LIGER}::test_liger_is_in_the_layers_and_gradients_are_those_without",
    ),
)
