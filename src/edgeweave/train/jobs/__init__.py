"""A job as a file: read, checked, its sections as values."""
