"""Training and benchmark data: reading, sampling, augmentation, download, packing and generation."""
