"""Training SCFeat: an optional warm-up on known homographies, then description, then detection, from camera poses."""
