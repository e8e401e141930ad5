"""Leave a wide first layer at nearest rounding."""
from mmquant.models.units import first_layers
from mmquant.reconstruction.hooks.hook import FitHook
from mmquant.registry import FIT_HOOKS
from mmquant.structures.unit import Unit


@FIT_HOOKS.register_module()
class LeaveStem(FitHook):
    """Leave a unit of layers that read the network's input, with weights of many bits, at nearest rounding.

    A unit in which more than weights would train is reconstructed all the same.

    Args:
        min_bits (int): How many are many. Default 8.
    """

    def __init__(self, min_bits: int = 8) -> None:
        self.min_bits = min_bits

    def wanted(self, model, unit: Unit, trains: bool) -> bool:
        layers, first = model.quantized_layers(), first_layers(model.architecture, model.flow)
        wide = all(layers[n].weight_quantizer.bit_width >= self.min_bits for n in unit.layers if n in layers)
        return trains or not (set(unit.layers) <= first and wide)
