"""Judges for open answers: an OpenAI-compatible endpoint and its cached verdicts."""
