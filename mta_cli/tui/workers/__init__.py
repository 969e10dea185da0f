"""Threads behind the window: the store's thread, the model's worker and the queue of jobs."""
