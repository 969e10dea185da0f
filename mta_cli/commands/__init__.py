"""The commands, one module for each group: signatures, help and rendering. No job's logic, no tensors, no SQL."""
