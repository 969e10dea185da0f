"""Files of histories, tasks, profiles, and the examples that training and answers are made of."""
