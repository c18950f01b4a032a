"""Evidence of the column-sparse gradients."""
