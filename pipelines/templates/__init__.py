"""The code for the top-level folder `templates/`: template sets, their fields and their rules."""
