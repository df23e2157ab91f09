"""What people watch while a stage trains: metrics, loss spikes, FLOPs, periodic evaluation and Weights & Biases."""
