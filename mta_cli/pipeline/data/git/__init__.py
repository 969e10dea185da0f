"""Reads git repositories: whose commits they hold, and what the commits change."""
