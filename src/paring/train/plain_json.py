"""See `paring.core.plain_json`."""

from paring.core.plain_json import VALUES, JSONError, is_count, is_number, parsed, shown, size

__all__ = ["VALUES", "JSONError", "is_count", "is_number", "parsed", "shown", "size"]
