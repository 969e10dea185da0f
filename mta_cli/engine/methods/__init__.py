"""Ways to make a model personal that `mta eval` compares; each module is one family, all have the shape in `shape`."""
