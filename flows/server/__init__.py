"""The local Prefect server and worker."""
