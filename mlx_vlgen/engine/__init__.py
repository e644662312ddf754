"""The token iterator and what plugs into it. Knows no family."""
