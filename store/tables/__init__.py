"""One module for each table or group of related tables."""
