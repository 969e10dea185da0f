"""Answers of personal models: `answer`, `conversation`, `compare`."""
