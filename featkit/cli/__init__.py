"""The command line: one file per verb; each parses, builds a config and calls one function. Nothing imports it."""
