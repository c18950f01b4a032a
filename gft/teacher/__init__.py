"""gft sample: a teacher's responses to the prompts of a file."""
