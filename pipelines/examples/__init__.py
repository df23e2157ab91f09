"""Annotations → examples: instructize, group into conversations, render and encode (Beam job 1)."""
