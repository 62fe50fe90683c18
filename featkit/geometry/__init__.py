"""Pixel conventions, rotations, epipolar geometry. Pure numpy functions; no I/O, no pycolmap."""
