"""Imports of histories, tasks, profiles, and the prompt rows for training and answers."""
