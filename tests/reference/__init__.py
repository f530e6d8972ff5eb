"""Naive twins: slow, obvious versions of what the package does fast. Plain Python where possible."""
