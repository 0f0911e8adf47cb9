"""The runs and sweeps of a folder: list, remove, move, sync to W&B."""
