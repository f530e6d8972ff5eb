"""The `paring` command."""
