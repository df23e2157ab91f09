"""Other projects' loaders behind one interface; each runs in its own environment."""
