"""A peer of a gossip run: its own data, its own copy of the model, and its neighbours."""
