"""The names under which featkit inside other programs was first published: see `featkit.hloc`."""
