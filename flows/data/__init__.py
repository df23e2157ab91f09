"""What a stage learns from, without Prefect."""
