"""What a caller calls, and the way from its arguments to an engine."""
