"""Checks of a store, and repairs that lose no data."""
