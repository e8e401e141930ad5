from mmquant.models.quantized_model import QuantizedModel

__all__ = ['QuantizedModel']
