"""Readers of answer and question files: JSON, JSON lines and workbooks."""
