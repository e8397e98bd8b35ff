"""The plan of a run: what it takes in memory, hours and money, from its recipe alone."""
