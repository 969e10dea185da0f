"""The six rooms of the window, a module each."""
