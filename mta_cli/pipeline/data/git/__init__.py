"""Reads git repositories: whose commits they hold, and what the commits change."""

from __future__ import annotations

LEAST_COMMITS = 10
"""The default for the commits that an author needs: eight items, as an anchor does, and two to be measured on."""
