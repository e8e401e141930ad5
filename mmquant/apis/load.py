"""A saved quantized model, without its config."""
import os

from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.checkpoint import read_quantized
from mmquant.models.unchanged import unchanged_on_error
from mmquant.utils.tensor_files import CheckpointError


def load(model: nn.Module, path) -> QuantizedModel:
    """Load what ``QuantizedModel.save``, and with it tools/ptq.py, wrote.

    Args:
        model (nn.Module): The float model, built as for quantizing; its weights do not matter. Changed in place.
        path (str | PathLike): The checkpoint, which says its quantizers itself.

    Raises a CheckpointError, the model being unchanged, if the file is missing or damaged, of another model, or so old
    that it does not say its quantizers; a ConfigError for a model that is quantized already.
    """
    quantizer = read_quantized(path)['made_with'].get('quantizer')
    if quantizer is None:
        raise CheckpointError(f'{os.fspath(path)} does not say its quantizers, being of an older version; build a '
                              'QuantizedModel(model, quantizer=dict(weight=..., activation=...)) and call its load')
    with unchanged_on_error(model):
        model.eval()
        quantized = QuantizedModel(model, quantizer, 'random')
        quantized.load(path)
    return quantized
