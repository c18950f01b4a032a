"""What touches the vocabulary: one engine a device, all behind `contract.py`."""
