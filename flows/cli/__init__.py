"""The `honeybee` command."""
