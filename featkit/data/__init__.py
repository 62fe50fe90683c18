"""Training and benchmark data, and the rendered scene of the demo."""
