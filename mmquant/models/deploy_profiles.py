"""What a runtime takes: data that steps and the exporter read."""
from typing import ClassVar

from mmquant.registry import PROFILES
from mmquant.utils.building import ConfigError, closest


class DeployProfile:
    """One target.

    Attributes:
        opset (int): Of the ONNX file.
        between (bool): Whether tensors between integer operations need quantizers, too: outputs of convolutions that
            are added, concatenated, pooled or returned; else only inputs of layers.
        largest_code (int): Bound for low-bit weights that are shifted up, see :func:`integer_weight`.
        smallest_packed (int): Fewest bits in which a packed file stores a weight.
    """
    opset: ClassVar[int] = 21
    between: ClassVar[bool] = True
    largest_code: ClassVar[int] = 127
    smallest_packed: ClassVar[int] = 2


@PROFILES.register_module(name=['ort_cpu', 'OrtCpu'])
class OrtCpu(DeployProfile):
    """ONNX Runtime on CPUs. Sums of two products saturate at 16 bits on x86 without VNNI unless codes stay below 64."""
    largest_code = 63


@PROFILES.register_module(name=['openvino_cpu', 'OpenvinoCpu'])
class OpenvinoCpu(DeployProfile):
    """OpenVINO on CPUs: rounds between operations by itself, and reads no 2-bit tensors."""
    between = False
    largest_code = 63
    smallest_packed = 4


def find_profile(name: str) -> type[DeployProfile]:
    """The registered profile of a name; ConfigError for an unknown one."""
    found = PROFILES.get(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(f'unknown deploy profile {name!r}; {closest(str(name), PROFILES.module_dict)}')
    return found
