from mmquant.analysis.tables import summary
from mmquant.apis.quantize import quantize

__all__ = ['quantize', 'summary']
