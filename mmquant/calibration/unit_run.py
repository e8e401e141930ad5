"""A unit of the network as a function."""
from mmquant.calibration.unit_inputs import UnitInput, output_of
from mmquant.models import QuantizedModel
from mmquant.models.units import activation_of, unit_module
from mmquant.structures.unit import Unit


class UnitRun:
    """One call of a unit as a function of its data, in the quantization mode that is active.

    Args:
        call (int): Which of its calls.
        data (UnitInput | None): Where rows of data stand among the arguments; None: only :meth:`on` is used.
        activation (bool): Run the activation that alone reads the output too.
    """

    def __init__(self, model: QuantizedModel, unit: Unit, call: int = 0, data: UnitInput | None = None,
                 activation: bool = True) -> None:
        self.module, self.data = unit_module(model.architecture, unit), data
        self.activation = activation_of(model.architecture, unit) if activation else None
        self.per_call = model.per_call_within(unit, call)

    def __call__(self, x):
        return self.on(self.data.arguments(x))

    def on(self, arguments: tuple[tuple, dict]):
        """Output for (args, kwargs), into which the unit may write; one tensor or a tuple, as for rows of data."""
        for quantizer, position in self.per_call:
            quantizer.position = position
        args, kwargs = arguments
        output = output_of(self.module(*args, **kwargs))
        return output if self.activation is None else self.activation(output)
