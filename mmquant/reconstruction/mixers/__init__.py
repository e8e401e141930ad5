from mmquant.reconstruction.mixers.element_mix import ElementMix
from mmquant.reconstruction.mixers.mixer import Mixer

__all__ = ['ElementMix', 'Mixer']
