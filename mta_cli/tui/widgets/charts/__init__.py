"""Character charts that Textual has no widget for. They draw given numbers."""
