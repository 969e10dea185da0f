"""`mta doctor`, repair, and resuming of stopped jobs."""
