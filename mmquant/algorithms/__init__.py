from mmquant.algorithms.bias import CorrectBias
from mmquant.algorithms.deployment import InsertDeployQuantizers, MakeWeightsSymmetric, RoundBiases
from mmquant.algorithms.lapq import JointSearch, NormSweep
from mmquant.algorithms.output_affine import FoldOutputAffine, InsertOutputAffine
from mmquant.algorithms.preparation import FoldBatchNorm, InsertQuantizers, Reparameterize
from mmquant.algorithms.ranges import InitActivationRange, InitWeightRange
from mmquant.algorithms.reconstruction import Reconstruction
from mmquant.algorithms.solve_weights import SolveWeights
from mmquant.algorithms.step import CalibrationContext, Step

__all__ = ['CalibrationContext', 'CorrectBias', 'FoldBatchNorm', 'FoldOutputAffine', 'InitActivationRange',
           'InitWeightRange', 'InsertDeployQuantizers', 'InsertOutputAffine', 'InsertQuantizers', 'JointSearch',
           'MakeWeightsSymmetric', 'NormSweep', 'Reconstruction', 'Reparameterize', 'RoundBiases', 'SolveWeights',
           'Step']
