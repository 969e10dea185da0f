"""Importing users' histories, tasks, and the examples that training and answers are made of."""
