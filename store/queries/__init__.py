"""Reading that joins several tables."""
