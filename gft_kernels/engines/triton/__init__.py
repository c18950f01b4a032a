"""The Triton engine: NVIDIA and AMD, or any CPU under TRITON_INTERPRET=1 (slow: for tests)."""
