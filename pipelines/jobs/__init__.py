"""One file for each kind of store entry: its key, its VERSION and the code that makes it."""
