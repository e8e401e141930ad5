"""What is trained in one unit, by role, and the decided state that the unit ends in."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from mmquant.quantizers import Quantizer
from mmquant.reconstruction.training import ParamGroup
from mmquant.roundings import Rounding

# rounding: AdaRound's variables; weight, weight_scale: of straight-through rounding; affine, bias: of layers.
ROLES = ('rounding', 'weight', 'weight_scale', 'affine', 'bias', 'activation_scale')


class UnitVariables:
    """The trainable tensors of a unit's quantizers; float weights and biases are none of them.

    Args:
        layers (Mapping[str, QuantizedLayer]): Layers with ranges.
        roundings (Mapping[str, Rounding]): Started rounding of each layer.
        activations (list[Quantizer]): Activation quantizers to train.
    """

    def __init__(self, layers: Mapping, roundings: Mapping[str, Rounding], activations: list[Quantizer] = ()) -> None:
        self.layers, self.roundings, self.activations = layers, roundings, list(activations)
        self.slots = [slot for x in layers.values() for slot in x.slots]
        self.buffers: list[torch.Tensor] = []  # those that train

    def by_role(self) -> dict[str, list[torch.Tensor]]:
        """All that could be trained."""
        found: dict[str, list[torch.Tensor]] = defaultdict(list)
        for rounding in self.roundings.values():
            for role, params in rounding.roles().items():
                found[role] += params
        for part in (*self.slots, *self.activations):
            for role, buffers in part.trainables().items():
                found[role] += buffers
        return {role: params for role, params in found.items() if params}

    def start(self, rates: Mapping[str, float]) -> list[ParamGroup]:
        """Let tensors train; returns their groups. Rates fall along a cosine but for AdaRound's variables.

        Args:
            rates (Mapping[str, float]): Adam's rate of each role; roles that are missing, or at 0, stay as they are.
        """
        groups = []
        for role, params in self.by_role().items():
            if rates.get(role):
                for x in params:
                    if not x.requires_grad:
                        x.requires_grad_(True)
                        self.buffers.append(x)
                groups.append(ParamGroup(params, rates[role], cosine=role != 'rounding'))
        return groups

    def stop(self) -> None:
        """No tensor of the quantizers trains any more."""
        for x in self.buffers:
            x.requires_grad_(False)
            x.grad = None
        self.buffers = []

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep scales and factors positive."""
        for rounding in self.roundings.values():
            rounding.constrain()
        for part in (*self.slots, *self.activations):
            part.constrain()

    def _decided(self) -> list[torch.Tensor]:
        """Buffers that go with the codes."""
        parts = [*(x.weight_quantizer for x in self.layers.values()), *self.activations, *self.slots]
        return [x for part in parts for x in part.state()]

    @torch.no_grad()
    def nearest(self) -> tuple[dict, list]:
        """State with every weight at its nearest level, all else as it is."""
        codes = {n: x.weight_quantizer.encode(x.quantized_tensor) for n, x in self.layers.items()}
        return codes, [x.clone() for x in self._decided()]

    @torch.no_grad()
    def tuned(self) -> tuple[dict, list]:
        """State with what was learnt, decided."""
        for name, rounding in self.roundings.items():
            rounding.harden(self.layers[name].weight_quantizer)
        codes = {n: x.weight_quantizer.codes for n, x in self.layers.items()}
        return codes, [x.clone() for x in self._decided()]

    @torch.no_grad()
    def restore(self, state: tuple[dict, list]) -> None:
        """Go to a state of :meth:`nearest` or :meth:`tuned`."""
        codes, values = state
        for name, layer in self.layers.items():
            layer.weight_quantizer.set_codes(codes[name])
        for x, value in zip(self._decided(), values, strict=True):
            x.copy_(value)
