"""Snapshots: the part of a store that answering needs, published for other machines, which pull a read-only copy."""
