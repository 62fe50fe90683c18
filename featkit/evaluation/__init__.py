"""Benchmarks and metrics: recall, pose errors, comparison with ground-truth cameras."""
