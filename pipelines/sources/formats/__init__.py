"""How the bytes of official files are read: JSON streams, tars, conversations and joins."""
