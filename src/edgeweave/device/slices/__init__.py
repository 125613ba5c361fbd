"""A member of a run of super neurons: a slice of every layer, over links that lose."""
