"""Queries that join several tables."""
