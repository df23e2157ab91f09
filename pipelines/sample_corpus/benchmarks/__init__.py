"""Writers of held-out questions in the official layouts of the benchmarks."""
