"""Text generation, batched and streamed, for chat, serving and evaluation."""
