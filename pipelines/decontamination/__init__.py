"""Training rows against the images and questions of benchmarks."""
