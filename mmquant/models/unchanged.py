"""What fails leaves the model as it was."""
import contextlib
import copy

from torch import nn

from mmquant.models.packed_weight import PackedWeight


@contextlib.contextmanager
def unchanged_on_error(model: nn.Module):
    """Give back classes, attributes, hooks, parameters and buffers of all modules if the block raises.

    Takes the memory of the model's tensors a second time while the block runs.
    """
    modules = list(model.modules())
    states = [(m, type(m), {k: copy.copy(v) if isinstance(v, (dict, list, set)) else v for k, v in vars(m).items()})
              for m in modules]
    tensors = {id(x): x for m in modules for x in (*m._parameters.values(), *m._buffers.values())
               if x is not None and not isinstance(x, PackedWeight)}
    values = [(x, x.data, x.data.clone(), x.requires_grad) for x in tensors.values()]
    try:
        yield
    except BaseException:
        for module, cls, state in states:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(state)
        for x, data, value, requires_grad in values:
            x.data = data.copy_(value)
            x.requires_grad_(requires_grad).grad = None
        raise
