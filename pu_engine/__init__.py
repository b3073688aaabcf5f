"""The compression itself, as a library: teacher and images in, verified student out."""
