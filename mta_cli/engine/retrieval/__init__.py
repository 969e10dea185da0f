"""Embeddings, nearest neighbours, the choice of anchor users, and the screening of their adapters.

Read `embed` and `nearest` first, then `anchors` and `anchor_screening`.
"""
