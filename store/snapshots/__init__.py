"""Snapshots: the part of a store that answers need, published for other machines, which pull it as a read-only copy."""
