"""One module per claim. ``python -m benchmarks NAME [--quick] [--json]``; see ``__main__``."""
