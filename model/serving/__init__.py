"""A trained model over HTTP, in the form of OpenAI's chat completions."""
