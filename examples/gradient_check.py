"""Are the gradients right? Ours against eager logits and autograd, in fp64, for any objective.

Put your own objective in the list: it is held to the same limit.
"""

import torch
from own_objective import soft_gft

from gft_kernels import dft, gft, grpo, kl, linear_policy_loss, sft

LIMIT = 1e-10  # of the relative error in fp64
OBJECTIVES = [sft(), dft(), gft(0.7), grpo(clip_high=0.28) + kl(0.05), soft_gft]

torch.manual_seed(0)
weight = torch.randn(301, 32).double()
targets = torch.randint(0, 301, (64,))
hidden = torch.rand(64, 1).double() * weight[targets] / 4 + 0.1 * torch.randn(64, 32)  # p from 0 to nearly 1
advantages = torch.randn(64).double()
logprobs = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
old, ref = logprobs + 0.2 * torch.randn(64), logprobs + 0.2 * torch.randn(64)


def gradients(objective, backend):
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    given = {"old_logprobs": old, "ref_logprobs": ref, "objective": objective, "backend": backend}
    linear_policy_loss(*leaves, targets, advantages, **given).loss.backward()
    return [x.grad for x in leaves]


worst = 0.0
for objective in OBJECTIVES:
    pairs = zip(gradients(objective, "chunked"), gradients(objective, "eager"), strict=True)
    errors = [((ours - eager).norm() / eager.norm()).item() for ours, eager in pairs]
    worst = max(worst, *errors)
    print(f"dhidden {errors[0]:.0e}  dweight {errors[1]:.0e}  {getattr(objective, '__name__', objective)}")
print("all within" if worst <= LIMIT else "NOT within", f"{LIMIT:.0e} of autograd through the logits")
raise SystemExit(worst > LIMIT)
