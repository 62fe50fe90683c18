"""Recipes to read and edit: sequences of featkit calls, one file per workflow."""
