"""Shares of the datasets and the order of all samples, as a pure function."""
