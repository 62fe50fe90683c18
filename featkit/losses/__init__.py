"""Training losses, one idea of a paper per file: tensors in, a scalar out. No file access.

SCFeat's losses take the maps of both images and camera poses. Points are in featkit pixels of the image; all images of
a batch have the same size, and maps of any resolution cover the image.
"""
