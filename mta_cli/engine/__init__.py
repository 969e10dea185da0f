"""Pure machine learning: tensors and strings in, tensors, strings and events out. No database, no terminal."""
