"""The policy: a model with its tokenizer, how it is read, and what is put into it."""

from .policy import Policy, load_policy, make_policy

__all__ = ["Policy", "load_policy", "make_policy"]
