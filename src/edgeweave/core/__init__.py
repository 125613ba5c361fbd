"""Errors, units, clock, timeouts, version. Every other part stands on it; it on none of ours."""
