"""Robust estimators of relative pose, a file each, behind one signature (`base.PoseEstimator`); all.py lists them."""
