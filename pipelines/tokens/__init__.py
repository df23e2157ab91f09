"""The only place where text becomes tokens: tokenizer, chat style, encoding and loss mask."""
