"""One file for each dataset, which reads its official annotation files."""
