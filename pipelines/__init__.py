"""Recipes to read and edit: straight lines of featkit calls, one file per flow."""
