"""Localization of queries in a map: 2D-3D matches, absolute pose, the localize stage."""
