"""The only writer to the terminal: results, tables, progress, and the signals that end a program."""
