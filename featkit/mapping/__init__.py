"""The only package that imports pycolmap for maps: database, verification, mapping, triangulation, alignment."""
