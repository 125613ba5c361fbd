"""A stage of a pipeline that trains: computing, exchanging, and keeping states against failures."""
