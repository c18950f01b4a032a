"""Every objective beside its formula (lp, A, old, ref) -> loss, written from the method's table.

The formulas are detached where the table says so.
"""

from __future__ import annotations

import torch

from gft_kernels import cispo, dft, gft, grpo, kl, reinforce, sft


def clipped_ratio_loss(lp, a, old, low, high):
    r = (lp - old).exp()
    return -torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a)


def gft_loss(lp, a, tau):
    p = lp.detach().exp()
    return -a * torch.where(p < tau, p, 1.0) * lp


def k3(lp, ref, beta):
    return beta * ((ref - lp).exp() - (ref - lp) - 1)


def psft(logprobs, *, old_logprobs, **_):
    ratio = (logprobs - old_logprobs).exp()
    return -torch.where(ratio <= 1.2, ratio, 0.0)


def dro(logprobs, *, advantages, old_logprobs, **_):
    return -advantages * logprobs + 0.5 * 0.3 * (logprobs - old_logprobs) ** 2


def luffy(logprobs, *, advantages, **_):
    p = logprobs.exp()
    return -advantages * p / (p + 0.1)


def chord(logprobs, **_):
    p = logprobs.detach().exp()
    return -0.5 * p * (1 - p) * logprobs


OBJECTIVES = {
    "sft": (sft(), lambda lp, a, old, ref: -lp),
    "dft": (dft(), lambda lp, a, old, ref: -lp.detach().exp() * lp),
    "gft": (gft(0.7), lambda lp, a, old, ref: gft_loss(lp, a, 0.7)),
    "gft-launcher": (gft(0.1), lambda lp, a, old, ref: gft_loss(lp, a, 0.1)),
    "reinforce": (reinforce(), lambda lp, a, old, ref: -a * lp),
    "grpo": (grpo(), lambda lp, a, old, ref: clipped_ratio_loss(lp, a, old, 0.2, 0.2)),
    # one-sided widening, so that swapped sides show
    "dapo": (grpo(clip_low=0.1, clip_high=0.5), lambda lp, a, old, ref: clipped_ratio_loss(lp, a, old, 0.1, 0.5)),
    "dual-clip": (
        grpo(clip_low=0.1, clip_high=0.2, dual_clip=1.25),
        lambda lp, a, old, ref: torch.where(
            a < 0,
            torch.minimum(clipped_ratio_loss(lp, a, old, 0.1, 0.2), -1.25 * a),
            clipped_ratio_loss(lp, a, old, 0.1, 0.2),
        ),
    ),
    "cispo": (
        cispo(clip_low=0.3, clip_high=0.4),
        lambda lp, a, old, ref: -(lp - old).detach().exp().clamp(0.7, 1.4) * a * lp,
    ),
    "gft+kl": (gft(0.7) + kl(0.05), lambda lp, a, old, ref: gft_loss(lp, a, 0.7) + k3(lp, ref, 0.05)),
    "kl": (kl(0.05), lambda lp, a, old, ref: k3(lp, ref, 0.05)),
    "kl-corrected": (kl(0.05, corrected=True), lambda lp, a, old, ref: (lp - old).exp() * k3(lp, ref, 0.05)),
    "psft": (psft, lambda lp, a, old, ref: -torch.where((lp - old).exp() <= 1.2, (lp - old).exp(), 0.0)),
    "dro": (dro, lambda lp, a, old, ref: -a * lp + 0.15 * (lp - old) ** 2),
    "luffy": (luffy, lambda lp, a, old, ref: -a * lp.exp() / (lp.exp() + 0.1)),
    "chord": (chord, lambda lp, a, old, ref: -0.5 * lp.detach().exp() * (1 - lp.detach().exp()) * lp),
}

# The method's column "coef", dloss / dlogp, in closed form away from clip edges.
COEFFICIENTS = {
    "sft": lambda p, a, r, ref: -torch.ones_like(p),
    "dft": lambda p, a, r, ref: -p,
    "gft": lambda p, a, r, ref: -a * torch.where(p < 0.7, p, 1.0),
    "gft-launcher": lambda p, a, r, ref: -a * torch.where(p < 0.1, p, 1.0),
    "reinforce": lambda p, a, r, ref: -a,
    "grpo": lambda p, a, r, ref: torch.where(((r > 1.2) & (a > 0)) | ((r < 0.8) & (a < 0)), 0.0, -r * a),
    "dapo": lambda p, a, r, ref: torch.where(((r > 1.5) & (a > 0)) | ((r < 0.9) & (a < 0)), 0.0, -r * a),
    "dual-clip": lambda p, a, r, ref: torch.where(
        ((r > 1.2) & (a > 0)) | ((r < 0.9) & (a < 0)) | ((r > 1.25) & (a < 0)), 0.0, -r * a
    ),
    "cispo": lambda p, a, r, ref: -r.clamp(0.7, 1.4) * a,
    "kl": lambda p, a, r, ref: 0.05 * (1 - (ref - p.log()).exp()),
    "kl-corrected": lambda p, a, r, ref: 0.05 * r * (p.log() - ref),
    "psft": lambda p, a, r, ref: torch.where(r <= 1.2, -r, 0.0),
    "dro": lambda p, a, r, ref: -a + 0.3 * r.log(),
    "luffy": lambda p, a, r, ref: -a * 0.1 * p / (p + 0.1) ** 2,
    "chord": lambda p, a, r, ref: -0.5 * p * (1 - p),
}
