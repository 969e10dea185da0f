"""An evaluation: its design, the banks of its folds, every method's answers, and the result document."""
