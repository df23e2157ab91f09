"""Which samples share a sequence."""
