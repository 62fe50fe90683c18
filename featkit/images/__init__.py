"""Photographs: list, decode (EXIF, 16-bit, alpha, size cap), resize, masks, patches, the way back to stored pixels."""
