"""The command line: verbs by subject; each parses, builds a config and calls one function. Nothing imports it."""
