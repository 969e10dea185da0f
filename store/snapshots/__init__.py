"""Snapshots: the part of a store that serving needs, published for other machines, which pull it as a read-only
store.
"""
