"""The embedded comparison: a task, a small base model, and four methods side by side."""
