"""Choosing which images to match. Reads names and descriptors, writes pairs.txt; never matches."""
