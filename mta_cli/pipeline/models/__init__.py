"""The catalog of models: pulling, verifying, looking up and loading them."""
