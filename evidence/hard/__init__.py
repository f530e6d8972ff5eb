"""Measurements of hard-threshold networks that only the tables need."""
