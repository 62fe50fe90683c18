"""Image -> Features: the extractor protocol, SIFT, and the extract stage. No HDF5 beyond the store's functions."""
