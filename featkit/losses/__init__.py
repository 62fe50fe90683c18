"""What the networks are trained to do: one idea of a paper per file, tensors in and a scalar out. No files here."""
