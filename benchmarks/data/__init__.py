"""Benchmarks of the data build: examples, packing, shards, decontamination."""
