"""Reading and writing checkpoints of quantized models; two methods of QuantizedModel."""
import os
from math import prod

from mmquant.models.edits import PlanError
from mmquant.models.float_weights import load_float_weights
from mmquant.models.layers import QuantizedLayer
from mmquant.models.made_with import differences, plain_quantizer, quantizer_facts
from mmquant.models.old_plans import convert_state, from_old_dict
from mmquant.models.packed_state import PackedError, check_codes, grow, pack_state, shrink, unpack_state
from mmquant.models.plan import Plan
from mmquant.models.policy import QuantizerPolicy
from mmquant.models.unchanged import unchanged_on_error
from mmquant.utils.building import ConfigError, differing_keys
from mmquant.utils.download import fetch
from mmquant.utils.tensor_files import CheckpointError, read_tensors, write_atomically

__all__ = ['CheckpointError', 'FORMAT', 'fetch', 'load', 'load_float_weights', 'read_quantized', 'read_tensors', 'save',
           'write_atomically']
FORMAT = 2
MOST_SCALES = 2**24  # of one activation


def save(model, path, meta: dict | None = None) -> str:
    """Write all that the quantized net needs, atomically and as plain values; returns the path.

    Decides first (``decide``); holds no float weights of quantized layers, unless some weights have no range.
    Raises a CheckpointError for a model without quantizers, and if the file cannot be written.
    """
    if model.plan is None:
        raise CheckpointError(f'{path} is not written: the model has no quantizers yet; run the steps of an algorithm '
                              '(tools/ptq.py, mmquant.quantize), or save its state_dict as float weights')
    model.decide()
    packed = {x for x in model.quantized_layers().values() if x.weight_quantizer.codes is not None}
    state, blobs = pack_state(model.architecture, packed if model.ready[0] else set())
    made_with = dict(quantizer=plain_quantizer(model.quantizer_cfg), model=model.structure)
    about = shrink(dict(plan=model.plan.to_dict(), meta=meta or {}, made_with=made_with, **state))
    return write_atomically(path, dict(format=FORMAT, about=about, **blobs))


def read_quantized(path) -> dict:
    """Read a quantized checkpoint of this format, or of format 1 with its float weights.

    Returns ``plan``, ``meta``, ``state_dict``, ``made_with`` (``quantizer``: its config; ``model``: as of
    :func:`structure`; what an older version did not write is missing), and ``absent``: the keys of float weights that
    it does not hold. Raises a CheckpointError if it is missing, damaged, a float checkpoint, or of a newer format.
    """
    data = read_tensors(path)
    keys = set(data) if isinstance(data, dict) else set()
    if 'format' in keys and isinstance(data['format'], int) and data['format'] > FORMAT:
        raise CheckpointError(f'{path} has format {data["format"]}, this mmquant reads up to {FORMAT}; update mmquant')
    if {'format', 'plan', 'state_dict', 'meta'} <= keys:
        return dict(data, absent=set(), made_with=_older(data['meta']))
    if not {'format', 'about', 'codes'} <= keys:
        raise CheckpointError(f'{path} is no checkpoint of mmquant (no quantization plan inside); quantize the model '
                              'with tools/ptq.py and give the quantized.pth from its work directory')
    try:
        about = grow(data['about'])
        state, absent = unpack_state(about, data)
        return dict(plan=about['plan'], meta=about['meta'], state_dict=state, absent=absent,
                    made_with=about.get('made_with') or _older(about['meta']))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _altered(path, error) from error


def _older(meta) -> dict:
    """What older checkpoints of tools/ptq.py tell of how they were made."""
    settings = meta.get('settings') if isinstance(meta, dict) else None
    return {k: v for k, v in (settings or {}).items() if k == 'quantizer'}


def _altered(path: str, error: Exception) -> CheckpointError:
    what = str(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'  # Python's are terse
    return CheckpointError(f'{path} holds packed weights that do not fit together ({what}); it was altered or cut. '
                           'Copy or download it again, or quantize again with tools/ptq.py')


def load(model, path, float_weights: bool = False) -> dict:
    """Rebuild quantizers from a checkpoint of ``save`` and load their state; returns its meta.

    ``float_weights`` keeps the model's own float weights, for comparisons with the float net. Default: they are given
    up where the checkpoint holds none, so that asking for them is an error. Raises a CheckpointError, the model being
    unchanged, if the file is missing, damaged, without codes, or of a model with other modules, settings or quantizers.
    """
    path = os.fspath(path)
    data = read_quantized(path)
    with unchanged_on_error(model):
        _fill(model, path, data, float_weights)
        _check_quantizers(model, path, data)
        _check_same(path, 'model', differences(data['made_with'].get('model') or {}, model.structure))
    return data['meta']


def _check_quantizers(model, path: str, data: dict) -> None:
    saved = data['made_with'].get('quantizer')
    if saved is None:
        return
    try:
        saved = quantizer_facts(QuantizerPolicy(saved))
    except (AttributeError, ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f'{path} was made with quantizers that cannot be read ({error}); import the module that '
                              'registers them') from error
    _check_same(path, 'quantizer', differing_keys(saved, quantizer_facts(model.policy)))


def _check_same(path: str, what: str, changed: list[str]) -> None:
    if changed:
        more = f' and {len(changed) - 5} more' if len(changed) > 5 else ''
        raise CheckpointError(f'{path} was made with another {what} ({", ".join(changed[:5])}{more}), which gives '
                              'other results; load it into the model it was made with, or quantize again')


def _fill(model, path: str, data: dict, float_weights: bool) -> None:
    state, absent = data['state_dict'], data['absent']
    try:
        old = 'format' not in data['plan']  # format 1
        plan = from_old_dict(data['plan'], model.policy) if old else Plan.from_dict(data['plan'])
        large = next((p for p in plan.places if p.shape and not 0 < prod(p.shape) <= MOST_SCALES), None)
        if large is not None:
            raise PlanError(f'{large.name} has an activation with scales of shape {large.shape}')
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'{path} holds a quantization plan that cannot be read ({type(error).__name__}: '
                              f'{error}); it is damaged or of another version. Quantize again with tools/ptq.py'
                              ) from error
    if not any(isinstance(m, QuantizedLayer) for m in model.architecture.modules()):
        try:
            model.insert_quantizers(plan)
        except PlanError as error:
            raise CheckpointError(f'{path} does not fit the model: {error}') from error
    elif plan != model.plan:
        raise CheckpointError(f'{path} cannot be loaded: the model is already quantized, at other places or bits; '
                              'build a fresh QuantizedModel')
    if old:
        convert_state(state, plan)
    for name, layer in model.quantized_layers().items():
        if f'{name}.weight' in absent and not float_weights:
            layer.leave_codes(name)
    load_float_weights(model.architecture, path, state, absent)
    lost = [n for n, q in model.weight_quantizers().items() if q.initialized and q.codes is None]
    if lost and (not old or len(lost) == len(model.quantized_layers()) and _trained(data['meta'])):
        raise CheckpointError(f'{path} lacks the codes of {len(lost)} layers (first: {lost[0]}), without which their '
                              'weights would be others; it was altered. Copy or download it again, or quantize again')
    try:
        check_codes(model.architecture)
    except PackedError as error:
        raise _altered(path, error) from error


def _trained(meta: dict) -> bool:
    """Whether a run of format 1, which saved nearest weights without codes, had found better ones."""
    return any('flipped' in r for r in meta.get('records', ()))
