"""Label memory of a bank: its kNN items, their weight beside the model, and a user's label prior."""
