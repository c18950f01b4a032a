"""The embedded comparison: a task, a small base model, and five methods side by side."""
