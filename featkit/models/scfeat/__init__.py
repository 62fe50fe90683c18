"""SCFeat (Sun et al. 2022): dense descriptors and keypoint scores. Modules only; `features/dense` runs them fast."""

from featkit.models.scfeat.network import DenseMaps, SCFeatNetwork, SCFeatNetworkConfig, SCFeatOutput

__all__ = ["DenseMaps", "SCFeatNetwork", "SCFeatNetworkConfig", "SCFeatOutput"]
