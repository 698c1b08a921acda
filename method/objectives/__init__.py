"""What a run learns by: one file an objective, each with a record of what it asks of every stage."""
