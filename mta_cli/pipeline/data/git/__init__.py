"""Reads git repositories: the authors of commits, and what the commits change."""
