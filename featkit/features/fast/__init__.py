"""CPU inference of the dense network: fast, exact, in bounded memory. No training and no file access."""
