"""Features x Features -> Matches: the matcher protocol, mutual nearest neighbour, and the match stage."""
