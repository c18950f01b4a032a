"""The embedded comparison: a task, a small base model, and the methods side by side."""
