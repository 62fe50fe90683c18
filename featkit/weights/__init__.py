"""Trained weights: lookup by name or path, reading and writing as safetensors, manifest and catalogue."""
