"""The laboratory: what `mta eval` compares methods with. The product does not need it."""
