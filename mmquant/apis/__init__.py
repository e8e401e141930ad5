from mmquant.analysis.tables import summary
from mmquant.apis.load import load
from mmquant.apis.quantize import quantize

__all__ = ['load', 'quantize', 'summary']
