"""Prompts with given responses: examples, and the files they are read from."""
