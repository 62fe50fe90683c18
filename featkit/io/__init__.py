"""Files that featkit reads and writes: HDF5 features and matches, pairs.txt, poses.txt; all written atomically."""
