"""One module for each screen of the window, with its style sheet; `base` has the common parts."""
