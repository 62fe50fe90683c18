"""The dense network as it runs on the CPU: fast, exact, in bounded memory. No training here, and no files."""
