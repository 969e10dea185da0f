"""Readers of the file formats that `mta data import` knows: `catalog` lists them, `detect` chooses one for a file."""
