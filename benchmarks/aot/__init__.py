"""Every Triton kernel compiled for every architecture, with no GPU."""
