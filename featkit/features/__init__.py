"""Image -> Features: the extractor protocol, the extractors, and the extract stage."""
