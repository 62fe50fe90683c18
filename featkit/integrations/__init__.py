"""Former location of `featkit.hloc`, kept for compatibility."""
