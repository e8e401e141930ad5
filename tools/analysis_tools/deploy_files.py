"""The files that benchmark_deploy.py times: one float model, by several ways, as ONNX files of batch size 1."""
from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

import mmquant
from mmquant.export._extras import need
from mmquant.export.files import export

MIN_MAX = dict(type='mmquant.MinMaxObserver')
STEPS = [dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
         dict(type='mmquant.InitWeightRange', observer=MIN_MAX),
         dict(type='mmquant.InitActivationRange', observer=MIN_MAX)]
OURS = MappingProxyType(dict(w8a8=(8, 8), w4a4=(4, 4), w2a4=(2, 4)))


class TensorMode(nn.Module):
    """What is exported of a float model: logits, without post-processing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor):
        return self.model(x, mode='tensor') if hasattr(self.model, 'data_preprocessor') else self.model(x)


def random_model(name: str, images: Tensor) -> nn.Module:
    """A model of mmpretrain with random weights that knows the statistics of ``images``."""
    from mmpretrain import get_model
    torch.manual_seed(0)
    return with_statistics(get_model(name, pretrained=False), images)


def with_statistics(model: nn.Module, images: Tensor) -> nn.Module:
    """The model in evaluation mode, with the statistics of ``images`` in its BatchNorm layers."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        TensorMode(model.train())(images)
    return model.eval()


def make_files(model: nn.Module, images: Tensor, folder: Path,
               ours: Mapping[str, tuple[int, int]] = OURS) -> dict[str, Path]:
    """``float``, ``static`` (ONNX Runtime's own quantizer), and ours by bits; those below 8 bits are packed.

    Args:
        model (nn.Module): In evaluation mode; it stays as it is.
        images (Tensor): Calibration images (N, C, H, W), the same for all.
        folder (Path): Where the files go.
        ours (Mapping): Name -> bits of weights and activations. Default: W8A8, W4A4 and W2A4.
    """
    files = dict(float=folder / 'float.onnx', static=folder / 'static.onnx')
    write_float(model, images[:1], files['float'])
    write_static(files['float'], images, files['static'])
    for label, (w_bits, a_bits) in ours.items():
        quantized = mmquant.quantize(copy.deepcopy(model), [images], STEPS, w_bits, a_bits,
                                     weight=dict(symmetric=True) if w_bits == 8 else None,
                                     overrides=[] if w_bits == 8 else None)
        written = export(quantized, folder / f'{label}.onnx', images, packed=w_bits < 8, batch=1, allow_float=True)
        files[label] = Path((written.packed or written.qdq)[0])
    return files


def write_float(model: nn.Module, image: Tensor, path: Path) -> None:
    """The float model, with pooling and flattening as in our files, which ONNX Runtime's quantizer gains from, too."""
    from mmquant.export.onnx_graph import OnnxGraph
    from mmquant.export.passes import flatten_to_reshape, pool_globally
    with torch.no_grad():
        proto = torch.onnx.export(TensorMode(model), (image, ), dynamo=True, opset_version=21, verbose=False,
                                  input_names=['images'], external_data=False).model_proto
    graph = OnnxGraph(proto)
    for change in (pool_globally, flatten_to_reshape):
        change(graph)
    need('onnx').save(proto, path)


def write_static(float_path: Path, images: Tensor, path: Path, method: str = 'MinMax') -> None:
    """ONNX Runtime's static quantizer: QDQ, uint8 activations, int8 weights with scales by channel.

    ``method``: how it finds the ranges of activations, ``'MinMax'`` (default), ``'Entropy'`` or ``'Percentile'``.
    """
    quantization = need('onnxruntime.quantization')
    prepared = path.with_name('prepared.onnx')
    need('onnxruntime.quantization.shape_inference').quant_pre_process(str(float_path), str(prepared))
    rows = iter([dict(images=image[None].numpy()) for image in images])

    class Reader(quantization.CalibrationDataReader):
        """One image after the other, then None."""

        def get_next(self):
            return next(rows, None)

    quantization.quantize_static(str(prepared), str(path), Reader(), per_channel=True,
                                 quant_format=quantization.QuantFormat.QDQ,
                                 activation_type=quantization.QuantType.QUInt8,
                                 weight_type=quantization.QuantType.QInt8,
                                 calibrate_method=getattr(quantization.CalibrationMethod, method))
