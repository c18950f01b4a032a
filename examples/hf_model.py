"""One step on a transformers model: `split_head` takes it apart, and the head's logits never exist.

`split_head` is for one model on one device, with or without PEFT. Under DDP, FSDP or DeepSpeed the
wrapper's own forward must run: call `logits_policy_loss` on the logits of model(...).
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gft_kernels import GroupRewards, linear_policy_loss
from gft_kernels.integrations.hf import split_head

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=500, **sizes))
backbone, weight, head = split_head(model)  # scale, soft cap and bias found, and checked against the model
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

tokens = torch.randint(0, 500, (4, 16))  # one prompt of 6 tokens, four responses of 10
tokens[:, :6] = tokens[0, :6]
targets = tokens[:, 1:].clone()  # the token after each position
targets[:, :5] = -100  # the prompt is given
sequence_ids = torch.arange(4)[:, None].expand_as(targets).flatten()
rewards = GroupRewards(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.long), sequence_ids)

for step in range(3):
    hidden = backbone(input_ids=tokens).last_hidden_state[:, :-1].flatten(0, 1)  # [N, D]
    result = linear_policy_loss(hidden, weight, targets.flatten(), rewards, head=head)
    result.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    first, second, third, fourth = result.logprobs.view(4, -1).sum(1).tolist()
    print(f"step {step}: log p of right responses {(first + fourth) / 2:.2f}, of wrong {(second + third) / 2:.2f}")
