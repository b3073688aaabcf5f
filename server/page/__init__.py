"""The read-only page: what runs, what came of it, and its files."""
