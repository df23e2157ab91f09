"""Measurements of Honeybee against peers and plain implementations; run by hand."""
