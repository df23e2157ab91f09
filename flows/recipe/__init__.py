"""The recipe: everything that a run may choose, validated before anything runs."""
