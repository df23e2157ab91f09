"""Where a run is stored: workspace, results and finding earlier runs."""
