"""Cleaning, formatting and parsing of text. Knows no stream; every layer may use it."""
