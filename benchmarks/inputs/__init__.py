"""What they are measured on."""
