"""The policy: a model with its tokenizer, how it is read, and what is put into it."""
