"""A quantized model to a checkpoint and back."""
from __future__ import annotations

from mmquant.models.checkpoint import CheckpointError, altered, load_float_weights, read_quantized, save_quantized
from mmquant.models.edits import PlanError
from mmquant.models.layers import QuantizedLayer
from mmquant.models.old_plans import drop_idle_weights, from_old_dict, is_old
from mmquant.models.packed_state import PackedError, check_codes
from mmquant.models.plan import Plan


def save(model, path: str, meta: dict) -> str:
    """Decide and write; see ``QuantizedModel.save``."""
    model.decide()
    packed = {x for x in model.quantized_layers().values() if x.weight_quantizer.codes is not None}
    return save_quantized(path, model.architecture, packed if model.ready[0] else set(), model.plan.to_dict(), meta)


def load(model, path: str, float_weights: bool = False) -> dict:
    """Rebuild and load; see ``QuantizedModel.load``."""
    data = read_quantized(path)
    plan, state, absent = _read_plan(model, data, path), data['state_dict'], data['absent']
    if not any(isinstance(m, QuantizedLayer) for m in model.architecture.modules()):
        try:
            model.insert_quantizers(plan)
        except PlanError as error:
            raise CheckpointError(f'{path} does not fit the model: {error}') from error
    elif plan != model.plan:
        raise CheckpointError(f'{path} cannot be loaded: the model is already quantized, at other places or bits; '
                              'build a fresh QuantizedModel')
    if is_old(data['plan']):
        drop_idle_weights(state, plan)
    for name, layer in model.quantized_layers().items():
        if f'{name}.weight' in absent and not float_weights:
            layer.leave_codes(name)
    load_float_weights(model.architecture, path, state, absent)
    try:
        check_codes(model.architecture)
    except PackedError as error:
        raise altered(path, error) from error
    return data['meta']


def _read_plan(model, data: dict, path: str) -> Plan:
    try:
        plan = data['plan']
        return from_old_dict(plan, model.policy) if is_old(plan) else Plan.from_dict(plan)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'{path} holds a quantization plan that cannot be read ({type(error).__name__}: '
                              f'{error}); it is damaged or of another version. Quantize again with tools/ptq.py'
                              ) from error
