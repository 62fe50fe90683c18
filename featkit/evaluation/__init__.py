"""Metrics: recalls, pose errors, comparison with true cameras. Takes arrays, returns dataclasses."""
