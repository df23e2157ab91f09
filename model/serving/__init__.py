"""Serves a trained model over HTTP with an API compatible with OpenAI's chat completions."""
