"""Every method on the same people: design, banks by fold, answers cell by cell, and what they add up to."""
