"""Shared by the command groups: the context, arguments, option classes as flags, and commands that load lazily."""
