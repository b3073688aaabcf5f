"""The torch twin of a teacher: a canonical graph read into a module, and the proof that it is the same."""
