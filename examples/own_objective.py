"""An objective of your own: any function of per-token scalars, its coefficients by autograd.

GFT changes its weight C(p) with a step at tau. This one changes it smoothly: with a sigmoid in
place of the step, a token's weight grows from p to 1 around tau.
"""

import torch

from gft_kernels import linear_policy_loss


def soft_gft(logprobs, *, advantages, tau=0.7, width=0.05, **_):
    p = logprobs.detach().exp()  # detached: no gradient flows through the weight
    above = torch.sigmoid((p - tau) / width)
    return -advantages * (above + (1 - above) * p) * logprobs


if __name__ == "__main__":
    torch.manual_seed(0)
    weight = torch.randn(100, 32, requires_grad=True)
    targets = torch.randint(0, 100, (6,))
    hidden = (torch.linspace(0.05, 0.3, 6)[:, None] * weight[targets]).detach().requires_grad_()
    result = linear_policy_loss(hidden, weight, targets, torch.ones(6), objective=soft_gft)
    result.loss.backward()
    print("     p   coefficient d loss / d log p")
    for p, coefficient in sorted(zip(result.logprobs.exp().tolist(), result.coefficients.tolist(), strict=True)):
        print(f"{p:6.3f}   {coefficient:+.3f}")
