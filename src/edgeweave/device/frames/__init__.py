"""Frames on their way: coded, sent beside computing, queued until they are used."""
