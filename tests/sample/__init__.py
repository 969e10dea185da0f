"""The carried sample."""
