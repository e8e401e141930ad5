from mmquant.reconstruction.mixing import ElementMix

__all__ = ['ElementMix']
