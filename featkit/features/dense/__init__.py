"""Dense networks as they run: fast, exact, in bounded memory. No training here, and no files."""
