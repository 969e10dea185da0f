"""Pure machine learning: no database, no terminal, no settings.

Read in the order of the data: model, text, lora, scoring, generation, training; then retrieval and memory, the methods
that are made of them, and evaluation, which compares methods.
"""
