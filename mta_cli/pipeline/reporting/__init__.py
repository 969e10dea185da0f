"""What reports of evaluations are made of: result documents read, put into words, drawn and laid out in blocks."""
