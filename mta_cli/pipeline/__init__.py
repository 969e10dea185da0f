"""One module a job, each a generator of events; the only place where store and engine meet."""
