"""Features x Features -> Matches: the matcher protocol, mutual nearest neighbours, LightGlue, and the match stage."""
