"""What scoring is made of: the teacher on batches, in which precision, kept and reused by shard."""
