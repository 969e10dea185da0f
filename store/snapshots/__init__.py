"""Snapshots: the serving part of a store, published for other machines and pulled there, to be read only."""
