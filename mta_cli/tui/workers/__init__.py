"""Threads behind the window: the store's reader, the model's worker and the queue of jobs."""
