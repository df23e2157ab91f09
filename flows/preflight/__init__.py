"""What is checked and predicted before anything runs: checks, dry run, forecast and memory."""
