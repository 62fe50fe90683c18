"""All files featkit keeps: HDF5 features and matches, pairs.txt, poses.txt; each whole or not at all."""
