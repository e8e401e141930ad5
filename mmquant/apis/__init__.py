from mmquant.apis.quantize import quantize

__all__ = ['quantize']
