"""Semantic de-duplication of the turns of one image."""
