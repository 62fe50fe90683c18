"""Named configurations: only what differs from the defaults in code."""
