"""A transformers model computes the loss in its own forward, and its logits never exist.

`fuse_loss` gives the model the argument `policy_batch`. The model may then be wrapped as usual:
DDP, FSDP2, PEFT, torch.compile, accelerate.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gft_kernels import GroupRewards, gft
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
model = fuse_loss(LlamaForCausalLM(LlamaConfig(vocab_size=500, **sizes)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

tokens = torch.randint(0, 500, (4, 16))  # one prompt of 6 tokens, four responses of 10
tokens[:, :6] = tokens[0, :6]
targets = tokens[:, 1:].clone()  # [B, T-1], the token after each position
targets[:, :5] = -100  # the prompt is given
sequence_ids = torch.arange(4)[:, None].expand_as(targets)
rewards = GroupRewards(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.long), sequence_ids)

for step in range(3):
    result = model(input_ids=tokens, policy_batch=PolicyBatch(targets, gft(tau=0.7), rewards))
    result.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    first, second, third, fourth = result.logprobs.sum(1).tolist()
    print(f"step {step}: log p of right responses {(first + fourth) / 2:.2f}, of wrong {(second + third) / 2:.2f}")
