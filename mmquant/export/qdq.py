"""A quantized model as one ONNX file of integer codes between QuantizeLinear and DequantizeLinear."""
from __future__ import annotations

import contextlib
import io
import logging
import warnings

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmquant.export._extras import need
from mmquant.export.operators import translations
from mmquant.export.tracing import ExportError, Raw, WeightStand, traceable
from mmquant.models import QuantizedModel
from mmquant.models.deploy_profiles import find_profile
from mmquant.models.layers import use_channels_last, use_plain_memory

IR_VERSIONS = {21: 10, 25: 13}
"""IR version that an opset needs; newer ones are refused by older runtimes."""


def export_qdq(model: QuantizedModel, images: Tensor, profile: str = 'ort_cpu', batch: int | None = None,
               float_layers: dict[str, str] | None = None):
    """The QDQ form of a model's raw outputs (logits; one output for each tensor of a detector's heads).

    Args:
        model (QuantizedModel): With ranges; codes are decided.
        images (Tensor): Preprocessed images (N, C, H, W); the file takes this C, H, W.
        profile (str): Name of a :class:`DeployProfile`. Default ``'ort_cpu'``.
        batch (int | None): Fixed number of images a run; None, the default: any number.
        float_layers (dict | None): Filled with layers whose weights stay float, and why; None: such a layer is an error.

    Returns:
        onnx.ModelProto: The same bytes for the same model. Its input is called ``images``, outputs ``output0``, ...

    Raises:
        ExportError: For what the profile cannot express, with the layer, and for a model that torch cannot export.
    """
    need('onnx')
    need('onnxscript')
    target = find_profile(profile)
    if model.plan is None:
        raise ExportError('the model is not quantized: run the steps of an algorithm first (tools/ptq.py, '
                          'mmquant.quantize)')
    model.decide()
    count = batch or 2  # torch takes 1 for a constant
    sample = images[:1].expand(count, *images.shape[1:]).contiguous()
    with torch.no_grad():
        reference = Raw(model)(sample)
    with torch.no_grad(), traceable(model, target.largest_code, float_layers) as raw:
        _check_equal(reference, raw(sample))
        with _plain_memory(model):
            program = _traced(raw, sample, batch, target.opset)
    return _finished(program.model_proto, target.opset)


def _check_equal(reference: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """The operators must compute just what the quantizers do."""
    for i, (expected, found) in enumerate(zip(reference, outputs, strict=True)):
        if not torch.equal(expected, found):
            raise ExportError(f'the traceable form computes another output {i} (largest difference '
                              f'{(expected - found).abs().max():.4g}): a module reads a quantizer in a way that the '
                              'exporter does not know')


@contextlib.contextmanager
def _plain_memory(model: QuantizedModel):
    """Trace without layouts, which would become operations of their own."""
    use_plain_memory(model.architecture)
    for stand in model.architecture.modules():
        if isinstance(stand, WeightStand):
            stand.use_plain_memory()
    try:
        yield
    finally:
        if not model.plain_memory:
            use_channels_last(model.architecture)


def _traced(raw: Raw, sample: Tensor, batch: int | None, opset: int):
    shapes = None if batch else ({0: torch.export.Dim('batch', min=1)}, )
    log = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(log):
            warnings.simplefilter('ignore')
            logging.disable(logging.WARNING)
            return torch.onnx.export(raw, (sample, ), dynamo=True, opset_version=opset, dynamic_shapes=shapes,
                                     custom_translation_table=translations(), verbose=False, external_data=False)
    except Exception as error:
        lines = [x for x in str(error).splitlines() if x.strip()]
        raise ExportError(f'torch cannot export {type(raw.architecture).__name__} '
                          f'{"with this batch size" if batch else "for any batch size"} '
                          f'({type(error).__name__}: {(lines or [""])[0][:300]})'
                          + ('' if batch else '; give a fixed one: batch=1, --batch 1')) from error
    finally:
        logging.disable(logging.NOTSET)


def _finished(model, opset: int):
    """Graph passes; then names of our own, and nothing of where it was made."""
    from mmquant.export.onnx_graph import OnnxGraph
    from mmquant.export.passes import PASSES
    graph = OnnxGraph(model)
    for change in PASSES:
        try:
            change(graph)
        except ValueError as error:
            raise ExportError(str(error)) from error
    _anonymous(model)
    _rename(graph)
    model.ir_version = IR_VERSIONS.get(opset, model.ir_version)
    model.producer_name, model.producer_version = 'mmquant', ''
    return model


def _anonymous(model) -> None:
    """Drop what the exporter notes about its source: stack traces hold paths."""
    for field in (model, model.graph):
        field.doc_string = ''
        del field.metadata_props[:]
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output,
                 *model.graph.initializer):
        item.doc_string = ''
        if hasattr(item, 'metadata_props'):
            del item.metadata_props[:]
    del model.graph.value_info[:]
    del model.functions[:]


def _rename(graph) -> None:
    """Call the input ``images`` and outputs ``output0``, ...; nodes by their outputs."""
    names = {graph.graph.input[0].name: 'images'}
    names |= {x.name: f'output{i}' for i, x in enumerate(graph.graph.output)}
    for item in (*graph.graph.input, *graph.graph.output):
        item.name = names[item.name]
    for node in graph.graph.node:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = names.get(name, name).removeprefix('architecture.')
        node.name = node.output[0]
    for x in graph.graph.initializer:
        x.name = names.get(x.name, x.name).removeprefix('architecture.')
    graph.refresh()
