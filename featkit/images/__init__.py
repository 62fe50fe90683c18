"""Photographs: list, decode (EXIF, 16-bit, alpha, size cap), resize, and the way back to stored pixels."""
