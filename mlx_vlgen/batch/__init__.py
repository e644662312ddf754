"""Jobs: many rows from files, answered by one engine, journaled, resumed and written out."""
