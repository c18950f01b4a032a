"""Held-out accuracy, and how far a model is from its base."""
