"""Charts in characters, for what Textual has no widget for. They draw numbers that were computed elsewhere."""
