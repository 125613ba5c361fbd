"""Measure what others plan with: this device's speed, its links, its codecs."""
