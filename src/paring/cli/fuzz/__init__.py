"""Formats for `paring.testing.fuzz` of what the command line writes and reads."""
