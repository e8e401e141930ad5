"""A quantized model as one ONNX file of integer codes between QuantizeLinear and DequantizeLinear."""
from __future__ import annotations

import contextlib
import io
import logging
import warnings

import torch
from torch import Tensor

from mmquant.export._extras import need
from mmquant.export.onnx_graph import OnnxGraph
from mmquant.export.operators import translations
from mmquant.export.parts import Part
from mmquant.export.passes import PASSES
from mmquant.export.tracing import ExportError, WeightStand, traceable
from mmquant.models import QuantizedModel
from mmquant.models.deploy_profiles import find_profile
from mmquant.models.layers import use_channels_last, use_plain_memory

LARGEST_NOISE = 0.01
"""Share of an output's power by which one and the same network may differ: codes flip."""
IR_VERSIONS = {21: 10, 25: 13}
"""IR version that an opset needs; newer ones are refused by older runtimes."""


def export_qdq(model: QuantizedModel, part: Part, example: Tensor, profile: str = 'ort_cpu', batch: int | None = None,
               float_layers: dict[str, str] | None = None):
    """The QDQ form of a part of a quantized model.

    Args:
        model (QuantizedModel): With ranges; codes are decided.
        part (Part): Of the model, see :func:`parts_of`.
        example (Tensor): Input of the part (N, ...); the file takes these sizes behind the first one.
        profile (str): Name of a :class:`DeployProfile`. Default ``'ort_cpu'``.
        batch (int | None): Fixed first size; None, the default: any.
        float_layers (dict | None): Filled with layers whose weights stay float, and why; None: then it is an error.

    Returns:
        onnx.ModelProto: The same bytes for the same model. Its outputs are called ``output0``, ...

    Raises:
        ExportError: For what the profile cannot express, with the layer, and for a model that torch cannot export.
        ImportError: The packages of requirements/export.txt are missing.
    """
    need('onnxscript')
    target = find_profile(profile)
    if model.plan is None:
        raise ExportError('the model is not quantized: run the steps of an algorithm first (tools/ptq.py, '
                          'mmquant.quantize)')
    model.decide()
    count = batch or 2  # torch takes 1 for a constant
    sample = example[:1].expand(count, *example.shape[1:]).contiguous()
    with torch.no_grad():
        reference = part(sample)
    with torch.no_grad(), traceable(model, target.largest_code, float_layers):
        _check_equal(reference, part(sample))
        with _plain_memory(model):
            program = _traced(part, sample, batch, target.opset)
            if batch is None:
                _check_any_batch(part, program.exported_program, sample)
    return _finished(program.model_proto, part.input_name, target.opset)


def _check_equal(reference: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """The operators must compute just what the quantizers do."""
    for i, (expected, found) in enumerate(zip(reference, outputs, strict=True)):
        if not torch.equal(expected, found):
            raise ExportError(f'the traceable form computes another output {i} (largest difference '
                              f'{(expected - found).abs().max():.4g}): a module reads a quantizer in a way that the '
                              'exporter does not know')


def _check_any_batch(part: Part, program: torch.export.ExportedProgram, sample: Tensor) -> None:
    """A batch of another size must not come out worse: torch takes sizes that went through floats for constants."""
    shares = []
    for x in (sample, sample[:1]):
        try:
            pairs = list(zip(part(x), program.module()(x), strict=True))
            power = sum(float(a.double().square().sum()) for a, _ in pairs)
            shares.append(sum(float((a.double() - b).square().sum()) for a, b in pairs) / max(power, 1e-30))
        except Exception:  # a guard, or sizes that do not fit
            shares.append(float('inf'))
    if shares[1] > max(LARGEST_NOISE, 10 * shares[0]):
        raise ExportError(f'torch exports {type(part.architecture).__name__} for a batch of {len(sample)} alone: it '
                          'computes with the batch size as a number; give a fixed one: batch=1, --batch 1')


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


def _traced(part: Part, sample: Tensor, batch: int | None, opset: int):
    shapes = None if batch else ({0: torch.export.Dim('batch', min=1)}, )
    log = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(log):
            warnings.simplefilter('ignore')
            logging.disable(logging.WARNING)
            return torch.onnx.export(part, (sample, ), dynamo=True, opset_version=opset, dynamic_shapes=shapes,
                                     custom_translation_table=translations(), verbose=False, external_data=False)
    except Exception as error:
        lines = [x for x in str(error).splitlines() if x.strip()]
        raise ExportError(f'torch cannot export {type(part.architecture).__name__} '
                          f'{"with this batch size" if batch else "for any batch size"} '
                          f'({type(error).__name__}: {(lines or [""])[0][:300]})'
                          + ('' if batch else '; give a fixed one: batch=1, --batch 1')) from error
    finally:
        logging.disable(logging.NOTSET)


def _finished(model, input_name: str, opset: int):
    """Graph passes; then names of our own, and nothing of where it was made."""
    graph = OnnxGraph(model)
    for change in PASSES:
        try:
            change(graph)
        except ValueError as error:
            raise ExportError(str(error)) from error
    _anonymous(model)
    _rename(graph, input_name)
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


def _rename(graph, input_name: str) -> None:
    """Name the input, outputs (``output0``, ...), and nodes by their outputs."""
    names = {graph.graph.input[0].name: input_name}
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
