"""Migrations: how a store of an older schema becomes one of today's. `store/schema.sql` is that."""
