"""Students: the networks by name, the choice and the search among them, and their files."""
