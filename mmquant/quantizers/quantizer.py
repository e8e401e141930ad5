"""From a float tensor to representable values: the contract."""
from abc import abstractmethod

import torch
from torch import Tensor, nn

from mmquant.structures import IntegerGrid


class Quantizer(nn.Module):
    """Maps a tensor to the nearest (or learned) representable values; all state is in buffers.

    Attributes:
        enabled: Plain switch; while False, ``forward`` returns its input unchanged.
        scale: Buffer; callers may train it after ``quantizer.scale.requires_grad_(True)``.
        zero_point: Buffer, float tensor holding integers.
        bits: Buffer, int64 scalar tensor; change it through ``set_bits`` only.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.enabled = True
        self.register_buffer('scale', torch.ones(()))
        self.register_buffer('zero_point', torch.zeros(()))
        self.register_buffer('bits', torch.tensor(bits))
        self.register_buffer('_initialized', torch.tensor(False))
        self._ready = False  # mirror of _initialized on the host, so that forward never waits for a device

    @property
    def initialized(self) -> bool:
        """Whether the quantizer has a range; kept in checkpoints."""
        return self._ready

    @initialized.setter
    def initialized(self, value: bool) -> None:
        self._ready = bool(value)
        self._initialized.fill_(self._ready)

    def forward(self, x: Tensor) -> Tensor:
        """Representable values for ``x``, same shape and dtype; ``x`` itself while disabled.

        Raises:
            RuntimeError: Enabled without a range.
        """
        if not self.enabled:
            return x
        if not self._ready:
            raise RuntimeError(f'{type(self).__name__} was given a tensor of shape {tuple(x.shape)} but has no range '
                               'yet: call set_range, load a checkpoint, or set `enabled = False`.')
        return self._forward(x)

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor:
        """``forward`` of an enabled, initialized quantizer."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Integer codes of ``x`` by nearest rounding."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Values of integer codes."""

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool,
                              missing_keys: list, unexpected_keys: list, error_msgs: list) -> None:
        """Take over the shapes and the bit width of the checkpoint: a fresh quantizer does not know them."""
        for name in ('scale', 'zero_point'):
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None and saved.shape != own.shape:
                setattr(self, name, own.detach().new_empty(saved.shape))
        saved_bits = state_dict.get(prefix + 'bits')
        if saved_bits is not None:
            self._adopt_bits(int(saved_bits))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                                      error_msgs)
        if prefix + '_initialized' in state_dict:
            self._ready = bool(state_dict[prefix + '_initialized'])

    @abstractmethod
    def _adopt_bits(self, bits: int) -> None:
        """Follow a bit width read from a checkpoint."""

    @property
    @abstractmethod
    def grid(self) -> IntegerGrid:
        """The integers in use."""
