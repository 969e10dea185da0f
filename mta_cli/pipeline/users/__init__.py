"""Users: add, import their histories, list, describe, consent, export their data, forget them."""
