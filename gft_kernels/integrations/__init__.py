"""Thin adapters to other libraries. Each imports its library inside its functions only."""
