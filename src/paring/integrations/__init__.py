"""Callbacks for trainers that make their optimizer themselves: `paring.integrations.transformers`, `paring.integrations.lightning`.

Where the optimizer is yours (accelerate, ignite, a loop), `paring.attach(..., optimizer=...)` is all.
"""
