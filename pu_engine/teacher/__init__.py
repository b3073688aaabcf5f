"""What intake finds out about a teacher: its graph, its conventions, its labels, its taps, its facts."""
