"""FSDP2 in bf16, two processes: torchrun --nproc-per-node 2 examples/fsdp2.py

The loss is in the model's own forward, so FSDP2 gathers the head's weight and reduces its gradient
as it does for every other layer. Nothing below knows that there are no logits.
"""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from gft_kernels import gft
from gft_kernels.integrations.hf import PolicyBatch, fuse_loss, num_items_weights, pack

alone = {} if dist.is_torchelastic_launched() else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
dist.init_process_group("gloo", **alone)  # on GPUs: nccl
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
config = LlamaConfig(vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
model = fuse_loss(LlamaForCausalLM(config))
half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
for module in (*model.model.layers, model):
    fully_shard(module, mesh=dist.init_device_mesh("cpu", (ranks,)), mp_policy=half)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
torch.manual_seed(rank)  # each rank has responses of its own, packed into one row
row = pack([torch.randint(500, (1,)).expand(n) for n in (9, 14, 6)])  # a token, again and again
count = (row.targets != -100).sum()
dist.all_reduce(count)  # the targets of all ranks; FSDP2 averages over them
weights = num_items_weights(row.targets, count) * ranks
batch = PolicyBatch(row.targets, gft(tau=0.7), torch.ones(3)[row.sequence_ids], token_weights=weights)
for step in range(4):
    result = model(**row.inputs, policy_batch=batch)
    result.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"rank {rank} step {step}: log p {result.logprobs[row.targets != -100].mean():.2f}")
dist.destroy_process_group()
