"""The window: the terminal interface to a store. It shows results of `pipeline` and `store`."""
