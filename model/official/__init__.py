"""The checkpoints that the authors released: import, export and the projectors' names."""
