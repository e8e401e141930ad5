"""Float weights from what training frameworks write: found, named as the model names them, and checked."""
import os
from collections import OrderedDict
from collections.abc import Collection, Mapping

import torch
from mmengine.logging import MMLogger
from torch import nn

from mmquant.models.unchanged import unchanged_on_error
from mmquant.quantizers import Quantizer
from mmquant.utils.download import fetch, is_address
from mmquant.utils.tensor_files import CheckpointError, read_tensors

# Where a checkpoint keeps its weights, best first; averaged ones only where there are no others.
PLACES = ('state_dict', 'model', 'model_state_dict', 'model_state', 'net', 'network', 'weights', 'params',
          'ema_state_dict', 'state_dict_ema', 'model_ema', 'ema')
COMPILED = '_orig_mod.'  # in names of a model that torch.compile wrapped
EXTRA = '_extra_state'  # of modules with ``get_extra_state``; anything


def load_float_weights(model: nn.Module, source, state: dict | None = None, absent: Collection[str] = ()) -> None:
    """Load float weights into a model, strictly, after its own conversion of the names and shapes of older versions.

    ``source`` is a path or URL; ``'random'`` leaves the model as it is. ``state`` was read from there, if given; it
    may lack the keys ``absent``. Raises a CheckpointError, the model being unchanged, if there is no source, or keys,
    shapes, dtypes or values do not fit.
    """
    if source == 'random':
        return
    if not source:
        raise CheckpointError('the config gives no float weights: set model.float_checkpoint to a path or URL '
                              '(or to "random" to quantize a randomly initialised model on purpose)')
    state = _read_state(source, model) if state is None else state
    broken = [k for k, v in state.items() if isinstance(v, torch.Tensor) and v.is_floating_point()
              and not torch.isfinite(v).all()]
    if broken:
        raise CheckpointError(f'{source} holds NaN or infinite values in {len(broken)} tensors (first: {broken[0]})')
    given = OrderedDict((k, v) for k, v in state.items() if not k.startswith('data_preprocessor.'))
    given._metadata = getattr(state, '_metadata', {})
    with unchanged_on_error(model):
        _load(model, given, source, absent)


def _load(model: nn.Module, given: OrderedDict, source, absent: Collection[str]) -> None:
    own = model.state_dict()
    wrong = [f'{k}: {v.dtype} instead of {own[k].dtype}' for k, v in given.items()
             if isinstance(own.get(k), torch.Tensor) and own[k].is_floating_point()
             and isinstance(v, torch.Tensor) and not v.is_floating_point()]
    try:
        missing, extra = model.load_state_dict(given, strict=False)
    except RuntimeError as error:
        missing, extra = [k for k in own if k not in given], [k for k in given if k not in own]
        adopted = {f'{n}.{b}' for n, m in model.named_modules() if isinstance(m, Quantizer) for b in m._buffers}
        shapes = [f'{k}: {tuple(given[k].shape)} instead of {tuple(own[k].shape)}' for k in own if k in given
                  and isinstance(own[k], torch.Tensor) and given[k].shape != own[k].shape and k not in adopted]
        wrong += shapes or [str(error).splitlines()[-1].strip()]
    extra = [k for k in extra if '.folded_bn.' not in k]  # of a merged branch, in a model that was built merged
    missing = [k for k in missing if k not in absent]
    if missing or extra or wrong:
        kind = 'wrong shapes' if all(' instead of (' in x for x in wrong) else 'wrong values'
        kinds = ('missing keys', missing), ('unexpected keys', extra), (kind, wrong)
        told = '; '.join(f'{len(keys)} {kind} (first: {keys[0]})' for kind, keys in kinds if keys)
        raise CheckpointError(f'{source} does not fit the model: {told}. Is it the checkpoint of another architecture?')


def _read_state(source, model: nn.Module) -> dict:
    """State dict of a float checkpoint, with the versions of its modules; says what it took."""
    path = fetch(source)
    try:
        data = read_tensors(path)
    except CheckpointError:
        if is_address(str(source)):  # not to be found broken again
            os.remove(path)
        raise
    if isinstance(data, dict) and {'format', 'about', 'codes'} <= set(data):
        raise CheckpointError(f'{source} is a quantized checkpoint, which holds codes instead of float weights; give '
                              'the float checkpoint it was made from')
    state, told = data, []
    if isinstance(data, Mapping) and (place := next((k for k in PLACES if isinstance(data.get(k), Mapping)), None)):
        state, told = data[place], [] if place == 'state_dict' else [f'the weights under {place!r}']
    elif isinstance(data, Mapping) and not any(isinstance(v, torch.Tensor) for v in data.values()):
        state = None
    if not isinstance(state, Mapping):
        keys = f' with the keys {", ".join(map(str, list(data)[:5]))}' if isinstance(data, Mapping) else ''
        raise CheckpointError(f'{source} holds {type(data).__name__}{keys}, expected a dict with "state_dict" or '
                              'one of tensors')
    other = [k for k, v in state.items() if not isinstance(k, str) or not _plain_tensor(v) and not k.endswith(EXTRA)]
    if other:
        value = state[other[0]]
        kind = f'a tensor of {value.layout}, {value.dtype}' if isinstance(value, torch.Tensor) else type(value).__name__
        raise CheckpointError(f'{source} holds {kind} at {other[0]}, expected tensors only (dense ones, by names); '
                              'is it a checkpoint of model weights?')
    state, renamed = _named_as(state, model.state_dict())
    if told + renamed:
        MMLogger.get_current_instance().info(f'{source}: took {", ".join(told + renamed)}')
    return state


def _plain_tensor(value) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not (
        value.is_quantized or value.is_complex())


def _named_as(state: Mapping, own: Mapping) -> tuple[OrderedDict, list[str]]:
    """The state by the names of ``own``, without the prefixes and copies that wrappers add; and what was done.

    A prefix goes only where all names have it and none is a name of the model, as a submodule ``module`` is.
    """
    told, prefix = [], ''
    copies = {f'ema_{k.replace(".", "_")}' for k in own} | {'n_averaged'}  # of mmdet 2.x, of torch.optim.swa_utils
    left = [k for k in state if k in copies - own.keys()]
    kept = [k for k in state if k not in left and (k in own or not k.startswith('data_preprocessor.'))]
    compiled = COMPILED if any(COMPILED in k for k in kept) and not any(COMPILED in k for k in own) else None
    names = {k: k.replace(compiled, '') if compiled else k for k in kept}
    while names and not any(x.removeprefix(prefix) in own for x in names.values()):
        heads = {x.removeprefix(prefix).partition('.')[0] for x in names.values()}
        if len(heads) > 1 or not all('.' in x.removeprefix(prefix) for x in names.values()):
            prefix = ''
            break
        prefix += f'{heads.pop()}.'
    names = {k: x.removeprefix(prefix) for k, x in names.items()}
    if len(set(names.values())) < len(names):
        names, prefix, compiled = {k: k for k in kept}, '', None
    told += [f'the names without {x!r}' for x in (compiled, prefix) if x]
    told += [f'all but {len(left)} copies of weights ({left[0]}, ...)'] if left else []
    found = OrderedDict((x, state[k]) for k, x in names.items())
    versions = getattr(state, '_metadata', {})
    found._metadata = {f'{k}.'.replace(compiled or '\0', '').removeprefix(prefix)[:-1]: v for k, v in versions.items()}
    return found, told
