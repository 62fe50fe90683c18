"""Training and benchmark data: read, sampled, augmented, fetched, packed and made."""
