"""File formats: what lies in a file becomes checked records. Knows neither the store's tables nor the terminal."""

FORMATS = ("lamp", "users", "jsonl", "csv")
