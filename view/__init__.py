"""Reading a run: what it will cost, where it stands, what its rows look like."""
