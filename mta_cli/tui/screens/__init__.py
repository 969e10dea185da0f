"""One module a screen of the window, each with its style sheet; `base` is what they share."""
