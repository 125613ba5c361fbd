"""What latency prediction is made from: the probe's networks."""
