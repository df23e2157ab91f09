"""Benchmarks of image decoding and of the training loader."""
