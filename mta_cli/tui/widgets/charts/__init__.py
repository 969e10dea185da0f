"""Charts made of characters, of kinds that Textual has no widget for."""
