"""What a run is told: its options, what is refused among them, and recipes."""
