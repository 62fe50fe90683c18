"""What SCFeat learns from: camera poses alone, and for its warm-up known homographies. Maps in, a scalar out.

Points are in featkit pixels of the image, which all images of a batch share in size; maps of any resolution cover it.
"""
