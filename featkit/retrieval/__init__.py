"""Global descriptors (VLAD) and top-k search. Knows descriptors and names, not images or pairs files."""
