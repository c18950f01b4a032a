"""gft: a minimal Group Fine-Tuning loop on gft_kernels."""
