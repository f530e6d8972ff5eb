"""Networks that several processes train."""
