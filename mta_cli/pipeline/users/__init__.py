"""Users: describe, list, consent, export their data, forget them."""
