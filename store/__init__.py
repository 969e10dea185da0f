"""The store: a SQLite database of users, banks and models, and the adapter files. It imports neither engine nor
terminal.
"""
