"""A run that outlives its devices: noticing, copying, going on."""
