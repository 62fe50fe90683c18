"""What the networks are trained to do: one idea of a paper per file, tensors in and a scalar out. No files here.

SCFeat's take maps of both images and camera poses. Points are in featkit pixels of the image, which all images of a
batch share in size; maps of any resolution cover it.
"""
