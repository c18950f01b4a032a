"""What each command of `gft` does, once its options are read."""
