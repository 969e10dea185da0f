"""The only package that writes to the terminal: results, tables, progress; and the signals that end a program."""
