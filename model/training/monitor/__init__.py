"""Callbacks that watch a stage: metrics, loss spikes, FLOPs, periodic evaluation and Weights & Biases."""
