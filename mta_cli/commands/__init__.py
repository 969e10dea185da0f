"""One module a command group: signatures, help and rendering. No job's logic, no tensors, no SQL."""
