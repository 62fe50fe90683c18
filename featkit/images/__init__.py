"""Photographs: listing, decoding (EXIF, 16 bits, alpha, size limit), resizing, masks, patches, and EXIF metadata."""
