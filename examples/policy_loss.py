"""Rewards in, gradients out: the GFT loss of two groups of responses on a head.

A backbone would give `hidden`; random numbers stand for it here.
"""

import torch

from gft_kernels import GroupRewards, gft, linear_policy_loss

torch.manual_seed(0)
responses, length, hidden_size, vocabulary = 8, 12, 64, 1000
sequence_ids = torch.arange(responses).repeat_interleave(length)  # [N] which response a token is of
weight = torch.randn(vocabulary, hidden_size, requires_grad=True)  # [V, D], lm_head.weight
targets = torch.randint(0, vocabulary, sequence_ids.shape)  # [N]
hidden = torch.rand(len(targets), 1) * weight[targets].detach() / 4  # [N, D], unsure of some tokens, sure of others
hidden.requires_grad_()
targets[::4] = -100  # masked: a prompt, padding

group_ids = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])  # [B] which prompt a response answers
rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5])  # [B]; group 1 has no spread

result = linear_policy_loss(
    hidden, weight, targets, GroupRewards(rewards, group_ids, sequence_ids), objective=gft(tau=0.7)
)
result.loss.backward()

print(f"loss {result.loss.item():.4f}")
for name, value in result.stats.items():
    print(f"  {name:<20} {value.item():.4g}")
learning = hidden.grad.norm(dim=1).view(responses, length).sum(1) > 0
print("responses with a gradient:", learning.nonzero().flatten().tolist())
print("group 1 taught nothing, so the head never saw its rows: their log-probs are", result.logprobs[-1].item())
