"""One module a table, or a few related tables."""
