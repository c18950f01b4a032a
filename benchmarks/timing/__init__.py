"""Rounds, gate, peaks."""
