"""Reports of evaluations: tables, charts and a page in HTML."""
