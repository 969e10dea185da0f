"""One module a noun: signatures, help and rendering. No job's logic, no tensors, no SQL."""
