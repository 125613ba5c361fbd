"""What devices and links take for a program: measured, learnt before, or predicted."""
