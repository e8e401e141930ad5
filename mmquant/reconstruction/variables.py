"""What is trained in one unit, by role, and the decided state that the unit ends in."""
import contextlib
from collections import defaultdict
from collections.abc import Mapping

import torch

from mmquant.quantizers import Quantizer
from mmquant.reconstruction.optimizers import ParamGroup, Training
from mmquant.roundings import Rounding

State = tuple[dict[str, torch.Tensor], list[torch.Tensor]]


class UnitVariables:
    """The trainable tensors of a unit's quantizers, weights' and activations'; float weights are none of them.

    ``layers`` have ranges; ``roundings`` are the started ones of all of them, or empty: weights stay as they are.
    """

    def __init__(self, layers: Mapping, roundings: Mapping[str, Rounding], activations: list[Quantizer] = ()) -> None:
        self.layers, self.roundings, self.activations = layers, roundings, list(activations)
        self.slots = {name: layer.slots for name, layer in layers.items()}
        self.buffers: list[torch.Tensor] = []  # those that train
        self.owners: list = []  # whose tensors train

    @property
    def num_weights(self) -> int:
        """Weights whose rounding is learnt."""
        return sum(self.layers[name].quantized_tensor.numel() for name in self.roundings)

    def _owners(self):
        """(what offers roles, its roles, bits of its quantizer)."""
        for name, layer in self.layers.items():
            bits = layer.weight_quantizer.bit_width
            if name in self.roundings:
                yield self.roundings[name], self.roundings[name].roles(), bits
            for slot in self.slots[name]:
                yield slot, slot.trainables(), bits
        for quantizer in self.activations:
            yield quantizer, quantizer.trainables(), quantizer.bit_width

    def by_role(self) -> dict[str, list[torch.Tensor]]:
        """All that could be trained."""
        found: dict[str, list[torch.Tensor]] = defaultdict(list)
        for _, roles, _ in self._owners():
            for role, tensors in roles.items():
                found[role] += tensors
        return dict(found)

    def start(self, trainings: Mapping[str, Training]) -> list[ParamGroup]:
        """Let tensors train; returns their groups."""
        found: dict[str, list[torch.Tensor]] = defaultdict(list)
        for owner, roles, bits in self._owners():
            names = [r for r, t in trainings.items() if t.lr and roles.get(r) and bits <= (t.max_bits or bits)]
            for role in names:
                found[role] += roles[role]
            self.owners += [owner] if names else []
        for x in (x for tensors in found.values() for x in tensors):
            if not x.requires_grad:
                x.requires_grad_(True)
                self.buffers.append(x)
        return [ParamGroup(tensors, trainings[role]) for role, tensors in found.items()]

    def stop(self) -> None:
        """No tensor of the quantizers trains any more."""
        for x in self.buffers:
            x.requires_grad_(False)
            x.grad = None
        self.buffers, self.owners = [], []

    @contextlib.contextmanager
    def soft(self):
        """Weights are what their roundings make of them; whatever happens, not after this block."""
        try:
            self._set_roundings(self.roundings)
            yield
        finally:
            self._set_roundings(dict.fromkeys(self.roundings))

    def _set_roundings(self, roundings: Mapping[str, Rounding | None]) -> None:
        for name, rounding in roundings.items():
            self.layers[name].weight_quantizer.rounding = rounding

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring what trains back to valid values."""
        for owner in self.owners:
            owner.constrain()

    def _buffers(self) -> list[torch.Tensor]:  # what goes with the codes
        owners = [*(x.weight_quantizer for x in self.layers.values()),
                  *(slot for slots in self.slots.values() for slot in slots), *self.activations]
        return [x for owner in owners for x in owner.state()]

    def _state(self) -> State:
        codes = {name: self.layers[name].weight_quantizer.codes.clone() for name in self.roundings}
        return codes, [x.detach().clone() for x in self._buffers()]

    @torch.no_grad()
    def nearest(self) -> State:
        """State with every weight that has a rounding at its nearest level, all else as it is."""
        for name in self.roundings:
            quantizer = self.layers[name].weight_quantizer
            quantizer.set_codes(quantizer.encode(self.layers[name].quantized_tensor))
        return self._state()

    @torch.no_grad()
    def tuned(self) -> State:
        """State with what was learnt, decided."""
        for name, rounding in self.roundings.items():
            rounding.harden(self.layers[name].weight_quantizer)
        return self._state()

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go to a state of :meth:`nearest` or :meth:`tuned`."""
        codes, values = state
        for name in self.roundings:
            self.layers[name].weight_quantizer.set_codes(codes[name])
        for x, value in zip(self._buffers(), values, strict=True):
            x.copy_(value)

    @contextlib.contextmanager
    def at(self, state: State):
        """Be in a state for a while, and then go on training where it was interrupted."""
        present = [x.detach().clone() for x in self._buffers()]
        soft = {n: self.layers[n].weight_quantizer.rounding for n in self.roundings}
        try:
            self._set_roundings(dict.fromkeys(soft))
            self.restore(state)
            yield
        finally:
            with torch.no_grad():
                for x, value in zip(self._buffers(), present, strict=True):
                    x.copy_(value)
            for name in self.roundings:
                self.layers[name].weight_quantizer.clear_codes()
            self._set_roundings(soft)
