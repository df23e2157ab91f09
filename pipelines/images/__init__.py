"""Images: references, decoding, measuring, hashing and shrinking, and the table of distinct images."""
