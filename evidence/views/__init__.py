"""How results become the tables and figures of the docs."""
