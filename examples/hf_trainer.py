"""transformers' Trainer with a policy loss: DFT on a data set of given tokens."""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from gft_kernels import dft
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss, num_items_weights, shift


class PolicyTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        targets = shift(inputs.pop("labels"))
        # The count of the whole step, over micro-batches; the Trainer makes it one of all ranks.
        count = num_items_in_batch if num_items_in_batch is not None else (targets != -100).sum()
        of_all = num_items_in_batch is not None and self.args.average_tokens_across_devices
        weights = num_items_weights(targets, count) * (self.accelerator.num_processes if of_all else 1)
        result = model(**inputs, policy_batch=PolicyBatch(targets, dft(), token_weights=weights))
        return (result.loss, {"logprobs": result.logprobs}) if return_outputs else result.loss


torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
model = fuse_loss(LlamaForCausalLM(LlamaConfig(vocab_size=500, **sizes)))
rows = [{"input_ids": x, "labels": x} for x in torch.randint(0, 500, (8, 1)).expand(8, 12)]  # a token, again and again
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=40, learning_rate=3e-3, gradient_accumulation_steps=2, per_device_train_batch_size=4,
        logging_steps=10, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    PolicyTrainer(model, arguments, train_dataset=rows).train()
