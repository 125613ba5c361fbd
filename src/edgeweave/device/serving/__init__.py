"""A stage of a model that answers requests."""
