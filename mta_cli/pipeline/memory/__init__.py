"""Label memory of a bank: its neighbour items, their weights in the sum with the model, and users' label priors."""
