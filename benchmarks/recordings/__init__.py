"""Other people's measurements of their devices, and ways to predict them."""
