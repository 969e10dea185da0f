"""One module a table (or a few that belong together)."""
