"""Shared foundations: types, configuration, method names, errors, logging, the running process."""
