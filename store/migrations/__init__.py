"""Migrations: how a store of an older schema becomes one of today's. `docs/schema.sql` shows the result."""
