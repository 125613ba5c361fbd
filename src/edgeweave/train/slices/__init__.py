"""Super neurons: train in slices, over links that lose and devices that vanish."""
