"""Migrations: they bring a store of an older schema to the current one, `store/schema.sql`."""
