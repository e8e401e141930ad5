"""Reading and writing checkpoints without ever executing code from them; two methods of QuantizedModel."""
import os
import urllib.error
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Collection

import torch
from torch import nn

from mmquant.models.edits import PlanError
from mmquant.models.layers import QuantizedLayer
from mmquant.models.old_plans import convert_state, from_old_dict
from mmquant.models.packed_state import PackedError, check_codes, grow, pack_state, shrink, unpack_state
from mmquant.models.plan import Plan
from mmquant.quantizers import Quantizer

FORMAT = 2


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the text says what to do."""


class _Ignored:
    """Stands for any object of an unknown class in a checkpoint's meta data; holds nothing and does nothing."""

    def __init__(self, *args, **kwargs) -> None:
        pass

    __setstate__ = __init__


def read_tensors(path: str) -> dict:
    """Load a checkpoint with ``weights_only=True``; foreign objects in its meta data become inert placeholders.

    Raises a CheckpointError if the file is missing, truncated or no checkpoint.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f'checkpoint {path} does not exist; give the path of a file, or download the '
                              'weights first')
    _check_sums(path)
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip archive, or a damaged one: the next lines say so
        foreign = []
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in foreign]):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch.load raises almost anything on damaged files
        told = str(error).rpartition('WeightsUnpickler error:')[2].strip()  # without its advice to load unsafely
        reason = told.splitlines()[0].strip() if told else 'no further information'
        raise CheckpointError(f'checkpoint {path} cannot be read ({type(error).__name__}: {reason}); it is truncated, '
                              'damaged, or holds objects other than tensors and plain values. Copy or download it '
                              'again, or save its state_dict alone') from error


def _check_sums(path: str) -> None:
    """torch.load does not compare the checksums that torch.save wrote: a flipped bit would be a wrong weight."""
    try:
        if not zipfile.is_zipfile(path):
            return
        reader = torch._C.PyTorchFileReader(path)  # what torch.load reads with
        with zipfile.ZipFile(path) as archive:
            broken = [x.filename for x in archive.infolist()
                      if zlib.crc32(reader.get_record(x.filename.partition('/')[2])) != x.CRC]
    except Exception as error:  # both raise almost anything on damaged files
        broken = [type(error).__name__]
    if broken:
        raise CheckpointError(f'checkpoint {path} cannot be read (wrong checksum: {broken[0]}); it is truncated or '
                              'damaged. Copy or download it again')


def fetch(path_or_url: str) -> str:
    """Local path of a checkpoint; a URL is downloaded once into torch's hub folder, or a CheckpointError is raised."""
    if not path_or_url.startswith(('http://', 'https://')):
        return path_or_url
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    target = os.path.join(folder, os.path.basename(path_or_url))
    if not os.path.isfile(target):
        os.makedirs(folder, exist_ok=True)
        try:
            torch.hub.download_url_to_file(path_or_url, target, progress=False)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise CheckpointError(
                f'the weights {path_or_url} cannot be downloaded ({error}); download the file elsewhere and pass '
                'its path: --cfg-options model.float_checkpoint=PATH. The embedded config '
                'configs/brecq/resnet18_w2a4_digits.py needs no download') from error
    return target


def load_float_weights(model: nn.Module, source: str | None, state: dict | None = None,
                       absent: Collection[str] = ()) -> None:
    """Load float weights into a model, strictly, after its own conversion of the names and shapes of older versions.

    ``source`` is a path or URL; ``'random'`` leaves the model as it is. ``state`` was read from there, if given; it
    may lack the keys ``absent``. Raises a CheckpointError if there is no source, or keys, shapes or values do not fit.
    """
    if source == 'random':
        return
    if not source:
        raise CheckpointError('the config gives no float weights: set model.float_checkpoint to a path or URL '
                              '(or to "random" to quantize a randomly initialised model on purpose)')
    state = _read_state(source) if state is None else state
    broken = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise CheckpointError(f'{source} holds NaN or infinite values in {len(broken)} tensors (first: {broken[0]})')
    given = OrderedDict((k, v) for k, v in state.items() if not k.startswith('data_preprocessor.'))
    given._metadata = getattr(state, '_metadata', {})
    try:
        (missing, extra), wrong = model.load_state_dict(given, strict=False), []
    except RuntimeError as error:
        own = model.state_dict()
        missing, extra = [k for k in own if k not in given], [k for k in given if k not in own]
        adopted = {f'{n}.{b}' for n, m in model.named_modules() if isinstance(m, Quantizer) for b in m._buffers}
        wrong = [f'{k}: {tuple(given[k].shape)} instead of {tuple(own[k].shape)}' for k in own
                 if k in given and given[k].shape != own[k].shape and k not in adopted]
        wrong = wrong or [str(error).splitlines()[-1].strip()]
    # statistics of a merged branch have no place in a model that was built merged
    extra = [k for k in extra if not k.endswith('.codes') and '.folded_bn.' not in k]
    missing = [k for k in missing if k not in absent]
    if missing or extra or wrong:
        kinds = ('missing keys', missing), ('unexpected keys', extra), ('wrong shapes', wrong)
        told = '; '.join(f'{len(keys)} {kind} (first: {keys[0]})' for kind, keys in kinds if keys)
        raise CheckpointError(f'{source} does not fit the model: {told}. Is it the checkpoint of another architecture?')


def _read_state(source: str) -> dict:
    """State dict of a float checkpoint, with the versions of its modules."""
    data = read_tensors(fetch(source))
    if isinstance(data, dict) and {'format', 'about', 'codes'} <= set(data):
        raise CheckpointError(f'{source} is a quantized checkpoint, which holds codes instead of float weights; give '
                              'the float checkpoint it was made from')
    state = data.get('state_dict', data) if isinstance(data, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f'{source} holds {type(data).__name__}, expected a dict with "state_dict"')
    found = OrderedDict((k.removeprefix('module.'), v) for k, v in state.items())
    found._metadata = getattr(state, '_metadata', {})
    other = [k for k, v in found.items() if not isinstance(v, torch.Tensor)]
    if other:
        raise CheckpointError(f'{source} holds {type(found[other[0]]).__name__} at {other[0]}, expected tensors only; '
                              'is it a checkpoint of model weights?')
    return found


def write_atomically(path: str, data: dict) -> str:
    """Write with ``torch.save`` to a temporary file, flush it to disk, then rename; returns the path.

    A process that is killed leaves the old file, and a ``.tmp`` that the next write replaces. Raises a CheckpointError
    if the disk is full or the folder cannot be written.
    """
    folder = os.path.dirname(os.path.abspath(path))
    temporary = f'{path}.tmp'
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, 'wb') as f:
            torch.save(data, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        handle = os.open(folder, os.O_RDONLY)  # the rename itself is on disk only when its folder is
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f'cannot write {path} ({error}); free some disk space or choose another --work-dir. '
                              'The previous file is untouched') from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return path


def save(model, path: str, meta: dict | None = None) -> str:
    """Write all that the quantized net needs, atomically and as plain values; returns the path.

    Decides first (``decide``); holds no float weights of quantized layers, unless some weights have no range.
    """
    model.decide()
    packed = {x for x in model.quantized_layers().values() if x.weight_quantizer.codes is not None}
    state, blobs = pack_state(model.architecture, packed if model.ready[0] else set())
    about = shrink(dict(plan=model.plan.to_dict(), meta=meta or {}, **state))
    return write_atomically(path, dict(format=FORMAT, about=about, **blobs))


def read_quantized(path: str) -> dict:
    """Read a quantized checkpoint of this format, or of format 1 with its float weights.

    Returns ``plan``, ``meta``, ``state_dict``, and ``absent``: the keys of float weights that it does not hold. Raises
    a CheckpointError if it is missing, damaged, a float checkpoint, or of a newer format.
    """
    data = read_tensors(path)
    keys = set(data) if isinstance(data, dict) else set()
    if 'format' in keys and isinstance(data['format'], int) and data['format'] > FORMAT:
        raise CheckpointError(f'{path} has format {data["format"]}, this mmquant reads up to {FORMAT}; update mmquant')
    if {'format', 'plan', 'state_dict', 'meta'} <= keys:
        return dict(data, absent=set())
    if not {'format', 'about', 'codes'} <= keys:
        raise CheckpointError(f'{path} is no checkpoint of mmquant (no quantization plan inside); quantize the model '
                              'with tools/ptq.py and give the quantized.pth from its work directory')
    try:
        about = grow(data['about'])
        state, absent = unpack_state(about, data)
        return dict(plan=about['plan'], meta=about['meta'], state_dict=state, absent=absent)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _altered(path, error) from error


def _altered(path: str, error: Exception) -> CheckpointError:
    return CheckpointError(f'{path} holds packed weights that do not fit together ({error}); it was altered or cut. '
                           'Copy or download it again, or quantize again with tools/ptq.py')


def load(model, path: str, float_weights: bool = False) -> dict:
    """Rebuild quantizers from a checkpoint of ``save`` and load their state; returns its meta.

    ``float_weights`` keeps the model's own float weights, for comparisons with the float net. Default: they are given
    up where the checkpoint holds none, so that asking for them is an error. Raises a CheckpointError if the file is
    missing, damaged, or of another model.
    """
    data = read_quantized(path)
    state, absent = data['state_dict'], data['absent']
    try:
        old = 'format' not in data['plan']  # format 1
        plan = from_old_dict(data['plan'], model.policy) if old else Plan.from_dict(data['plan'])
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
    try:
        check_codes(model.architecture)
    except PackedError as error:
        raise _altered(path, error) from error
    return data['meta']
