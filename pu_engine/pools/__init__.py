"""A pool on disk: immutable shards with an index each, written once and read by shard or row."""
