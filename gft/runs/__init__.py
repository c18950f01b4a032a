"""The folder of a run, and all that lets it go on."""
