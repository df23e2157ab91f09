"""Benchmarks of training: step time, logits, packing, memory."""
