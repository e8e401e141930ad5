"""The state of a quantized model as three tensors: what it is, packed codes, and all other numbers.

Codes take the bits that their grid needs. Of a layer whose codes are decided no float weight is kept. Tensors that
several names share are kept once. Numbers lie together by dtype, byte by byte, and are deflated: zero points, flags and
tables are mostly equal bytes. Statistics of folded BatchNorms, which no output depends on, are kept in half precision.
"""
import contextlib
import io
import zlib
from collections import OrderedDict, defaultdict
from math import prod

import torch
from torch import Tensor, nn

from mmquant.models.folding import FoldedBatchNorm
from mmquant.models.layers import QuantizedLayer
from mmquant.ops import pack_bits, packed_bytes, unpack_bits, width_of
from mmquant.quantizers import Quantizer
from mmquant.utils.tensor_files import from_bytes

LARGE = 2**23  # bytes beyond which deflating is to be quick
# Bytes to which data may be inflated: so many, and so many times their own. Zeros shrink to a thousandth.
ROOM, GROWTH = 2**26, 100
DTYPES = {str(d).removeprefix('torch.'): d for d in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class PackedError(ValueError):
    """Packed data that do not fit together."""


def pack_state(model: nn.Module, packed: set[nn.Module]) -> tuple[dict, dict[str, Tensor]]:
    """Pack the state of a model, without the float weights of the layers ``packed``.

    Returns what :func:`unpack_state` needs, in plain values; and uint8 tensors: ``codes``, ``numbers.float32``, ...
    Raises a PackedError for a tensor of a dtype that no checkpoint holds.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    state, entries, seen = model.state_dict(), [], {}
    codes, numbers = [], defaultdict(list)
    for key, value in state.items():
        owner, _, name = key.rpartition('.')
        module = modules[owner]
        if name == 'weight' and module in packed:
            entries.append(['absent', key])
        elif not isinstance(value, Tensor):
            entries.append(['plain', key, value])
        elif value.dtype not in NAMES:
            raise PackedError(f'{key} has dtype {value.dtype}, which a checkpoint does not hold; it holds '
                              f'{", ".join(DTYPES)}')
        elif (same := seen.setdefault((value.data_ptr(), value.dtype, value.shape, value.stride()), key)) != key \
                and value.numel():
            entries.append(['same', key, same])
        elif name == 'codes' and isinstance(module, Quantizer):
            order = sorted(range(value.dim()), key=value.stride, reverse=True)  # codes keep their order in memory
            first, last = module.code_range
            bits = width_of(first, last)
            entries.append(['codes', key, NAMES[value.dtype], list(value.shape), order, bits, first])
            codes.append(pack_bits(value.permute(order), bits, first))
        else:
            value = value.half() if isinstance(module, FoldedBatchNorm) else value
            entries.append(['number', key, NAMES[value.dtype], list(value.shape)])
            numbers[NAMES[value.dtype]].append(value.detach().cpu().flatten())
    blobs = {f'numbers.{name}': _deflated(torch.cat(parts)) for name, parts in numbers.items()}
    blobs['codes'] = torch.cat(codes) if codes else torch.empty(0, dtype=torch.uint8)
    return dict(entries=entries, versions=dict(getattr(state, '_metadata', {}))), blobs


def unpack_state(about: dict, blobs: dict[str, Tensor]) -> tuple[OrderedDict, set[str]]:
    """Inverse of :func:`pack_state`: state dict, keys of absent float weights; PackedError if parts do not fit."""
    for name, blob in blobs.items():
        if name == 'codes' or name.startswith('numbers.'):
            _check_bytes(name, blob)
    state, absent, entries, begin = OrderedDict(), set(), about['entries'], 0
    state._metadata = about['versions']
    sizes: dict[str, list[int]] = defaultdict(list)
    for kind, _, *facts in entries:
        if kind == 'number':
            sizes[facts[0]].append(prod(facts[1]))
    numbers = {name: iter(_inflated(blobs.get(f'numbers.{name}'), sum(counts), name).split(counts))
               for name, counts in sizes.items()}
    for kind, key, *facts in entries:
        if kind == 'absent':
            absent.add(key)
        elif kind == 'plain':
            state[key] = facts[0]
        elif kind == 'same':
            state[key] = state[facts[0]]
        elif kind == 'codes':
            dtype, shape, order, bits, first = facts
            end = begin + packed_bytes(prod(shape), bits)
            stream = blobs['codes'][begin:end]
            if len(stream) < end - begin:
                raise PackedError(f'the packed codes end within {key}: {len(blobs["codes"])} bytes, {end} expected')
            turned = unpack_bits(stream, bits, tuple(shape[i] for i in order), first, DTYPES[dtype])
            state[key] = turned.permute([order.index(i) for i in range(len(shape))])
            begin = end
        else:
            dtype, shape = facts
            state[key] = next(numbers[dtype]).view(shape).clone()
    if begin != len(blobs['codes']):
        raise PackedError(f'{len(blobs["codes"])} bytes of packed codes, but the layers take {begin}')
    return state, absent


def _check_bytes(name: str, blob) -> None:
    if not isinstance(blob, Tensor) or blob.dtype != torch.uint8 or blob.dim() != 1:
        found = f'a tensor of {blob.dtype} {tuple(blob.shape)}' if isinstance(blob, Tensor) else type(blob).__name__
        raise PackedError(f'{name!r} must be bytes, a tensor of torch.uint8 with one axis, found {found}')


def check_codes(model: nn.Module) -> None:
    """Raise PackedError unless all codes are levels of their quantizer, one for each weight."""
    for name, layer in model.named_modules():
        quantizer = getattr(layer, 'weight_quantizer', None) if isinstance(layer, QuantizedLayer) else None
        if quantizer is None or quantizer.codes is None or not quantizer.codes.numel():
            continue
        (low, high), (first, last) = (int(x) for x in quantizer.codes.aminmax()), quantizer.code_range
        if low < first or high > last:
            raise PackedError(f'{name} has codes in {low}..{high}, its {quantizer.bit_width}-bit quantizer takes '
                              f'{first}..{last}')
        shape, given = layer._parameters['weight'].shape, quantizer.codes.shape
        decoded = given
        if given != shape:  # grids may have one code for several weights
            with contextlib.suppress(RuntimeError):
                decoded = quantizer.decode(quantizer.codes).shape
        if decoded != shape:
            raise PackedError(f'{name} has codes of shape {tuple(given)}, its weight has {tuple(shape)}')


def shrink(value) -> Tensor:
    """Plain values and tensors, deflated, as a uint8 tensor; PackedError for more than :func:`grow` takes."""
    file = io.BytesIO()
    torch.save(value, file)
    if file.tell() > ROOM:
        raise PackedError(f'the description of a checkpoint takes {file.tell()} bytes, at most {ROOM}; give less meta')
    return _deflated(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))


def grow(data: Tensor):
    """The inverse of :func:`shrink`; executes no code. PackedError if the data are damaged or not plain values."""
    try:
        inflater = zlib.decompressobj()
        raw = inflater.decompress(data.numpy().tobytes(), ROOM)
        if not inflater.eof:
            raise PackedError(f'it is cut, or larger than {ROOM} bytes')
        return from_bytes(raw, 'description')
    except Exception as error:  # zlib raises almost anything on damaged data
        raise PackedError(f'its description cannot be read ({type(error).__name__}: {error})') from None


def _deflated(flat: Tensor) -> Tensor:
    planes = flat.contiguous().view(torch.uint8).view(flat.numel(), flat.element_size()).t().contiguous()
    data = zlib.compress(planes.numpy().tobytes(), 1 if planes.numel() > LARGE else 9)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _inflated(data: Tensor | None, count: int, name: str) -> Tensor:
    dtype = DTYPES.get(name)
    if dtype is None or data is None:
        raise PackedError(f'the numbers of dtype {name} are missing')
    size = count * dtype.itemsize
    if size > ROOM + GROWTH * data.numel():
        raise PackedError(f'{size} bytes of numbers of dtype {name} are claimed by {data.numel()} bytes')
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data.numpy().tobytes(), size + 1)  # no more, whatever the file claims
    except zlib.error as error:
        raise PackedError(f'the numbers of dtype {name} are damaged ({error})') from error
    if len(raw) != size:
        raise PackedError(f'{len(raw)} bytes of numbers of dtype {name}, {size} expected')
    planes = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    return planes.view(dtype.itemsize, count).t().contiguous().flatten().view(dtype)
