"""Asks a model the questions of a benchmark: batching, image cache, predictions and the shuffled-image control."""
