"""What draws responses from a policy."""
