"""Trained weights: found by name or path, read and written as safetensors, listed with what is known about them."""
