"""torch.compile only: the ops as custom ops, and what is traced around them."""
