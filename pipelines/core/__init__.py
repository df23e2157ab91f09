"""What every other part stands on: the store, atomic files, Arrow files, hashes and errors."""
