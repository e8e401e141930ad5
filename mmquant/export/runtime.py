"""Exported files in a runtime: outputs, the codes inside, and what the runtime made of the graph."""
import tempfile
from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from mmquant.export._extras import need
from mmquant.export.executor.graph_executor import check_inputs
from mmquant.export.executor.graph_view import load
from mmquant.export.saturation import cpu_saturates

PROVIDERS = ('onnxruntime', 'openvino')
INTEGER_ONLY = 'integer-only'  # no runtime, but the executor without floats
# int8 weights become uint8 where sums would be cut off to 16 bits; see mmquant.export.saturation
EXACT_SUMS = 'session.x64quantprecision'


class RuntimeSession:
    """Args:
        path (str | PathLike | onnx.ModelProto): The exported file.
        optimize (bool): All graph optimizations of ONNX Runtime (default), without which it computes in float, or none.
        threads (int): Default 1.
        taps (Sequence[str]): Further tensors that :meth:`run` returns; codes (outputs of QuantizeLinear or of a Clip
            behind it) leave the fusions as they are.
        provider (str): ``'onnxruntime'`` (default) or ``'openvino'``.
        disabled_optimizers (Sequence[str]): Names of optimizers of ONNX Runtime, such as ``'WeightBiasQuantization'``.
        exact_sums (bool): Right sums also on x86 CPUs without VNNI (default); False measures the file as it is.

    Raises:
        ValueError: A broken file, an unknown tap or provider, or an option that the provider lacks.
        ImportError: The runtime or onnx is missing.
    """

    def __init__(self, path: str | PathLike, optimize: bool = True, threads: int = 1, taps: Sequence[str] = (),
                 provider: str = 'onnxruntime', disabled_optimizers: Sequence[str] = (),
                 exact_sums: bool = True) -> None:
        if provider not in PROVIDERS:
            raise ValueError(f'provider must be one of {PROVIDERS}, got {provider!r}')
        if provider == 'openvino' and (disabled_optimizers or not optimize):
            raise ValueError('openvino has no levels of optimization and no optimizers that could be disabled')
        self.provider, self.optimize, self.threads = provider, optimize, threads
        self.disabled_optimizers, self.exact_sums = list(disabled_optimizers), exact_sums
        self.model = with_taps(load(path), taps)
        constants = {i.name for i in self.model.graph.initializer}
        self.inputs = [i for i in self.model.graph.input if i.name not in constants]
        self.output_names = [o.name for o in self.model.graph.output]
        try:
            self._session = self._compile() if provider == 'openvino' else self._onnxruntime()
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(f'{provider} cannot load this model: {error}') from error

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs and taps by name.

        Raises:
            ValueError: Names, shapes or types of the inputs are not the model's.
        """
        check_inputs(self.inputs, inputs)
        to_numpy = need('onnx.helper').tensor_dtype_to_np_dtype
        for info in self.inputs:
            expected, got = to_numpy(info.type.tensor_type.elem_type), np.asarray(inputs[info.name]).dtype
            if got != expected:
                raise ValueError(f'input {info.name!r} must be {expected}, got {got}')
        if self.provider == 'openvino':
            results = self._session(inputs)
            return {name: np.array(results[name]) for name in self.output_names}
        return dict(zip(self.output_names, self._session.run(self.output_names, inputs)))

    def optimized_ops(self) -> Counter:
        """Types of the operators that ONNX Runtime executes, counted.

        Raises:
            ValueError: Another provider.
        """
        if self.provider != 'onnxruntime':
            raise ValueError(f'optimized_ops knows the graph of onnxruntime alone, not of {self.provider}')
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / 'optimized.onnx')
            self._onnxruntime(path)
            return Counter(n.op_type for n in need('onnx').load(path).graph.node)

    def _onnxruntime(self, optimized_path: str = '') -> Any:
        runtime = need('onnxruntime')
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        level = runtime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if self.optimize else level.ORT_DISABLE_ALL
        options.optimized_model_filepath = optimized_path
        model = self.model
        if self.exact_sums:
            model = with_own_zero_points(unshared(model) if cpu_saturates() else model)
            options.add_session_config_entry(EXACT_SUMS, '1')
        return runtime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'],
                                        disabled_optimizers=self.disabled_optimizers)

    def _compile(self) -> Any:
        openvino = need('openvino')
        core = openvino.Core()
        model = core.read_model(self.model.SerializeToString())
        config = {'INFERENCE_NUM_THREADS': self.threads, 'NUM_STREAMS': 1, 'INFERENCE_PRECISION_HINT': 'f32'}
        return core.compile_model(model, 'CPU', config)


def unshared(model: Any) -> Any:
    """A copy in which no two readers share an int8 weight with codes outside -64..63.

    ONNX Runtime 1.32 fails where it has to make such a weight uint8 twice: heads that several pyramid levels share.
    """
    copy, to_array = type(model)(), need('onnx.numpy_helper').to_array
    copy.CopyFrom(model)
    wide = {x.name for x in copy.graph.initializer if x.data_type == 3 and to_array(x).size  # TensorProto.INT8
            and not -64 <= to_array(x).min() <= to_array(x).max() <= 63}
    constants = {x.name: x for x in copy.graph.initializer}
    for dq in [n for n in copy.graph.node if n.op_type == 'DequantizeLinear' and n.input[0] in wide]:
        readers = [n for n in copy.graph.node if dq.output[0] in n.input]
        for number, reader in enumerate(readers[1:]):
            own, at = type(dq)(), next(i for i, n in enumerate(copy.graph.node) if n is dq or n == dq)
            own.CopyFrom(dq)
            for place, name in enumerate(dq.input):
                own.input[place] = f'{name}_for_{number}'
                copy.graph.initializer.add().CopyFrom(constants[name])
                copy.graph.initializer[-1].name = own.input[place]
            own.output[0] = own.name = f'{dq.output[0]}_for_{number}'
            for place, name in enumerate(reader.input):
                if name == dq.output[0]:
                    reader.input[place] = own.output[0]
            copy.graph.node.insert(at, own)
    return copy


def with_taps(model: Any, taps: Sequence[str]) -> Any:
    """A copy with further outputs; integer types for codes, float for the rest.

    Raises:
        ValueError: A name that no node makes.
    """
    copy, helper = type(model)(), need('onnx.helper')
    copy.CopyFrom(model)
    makers = {name: node for node in copy.graph.node for name in node.output}
    types = {i.name: i.data_type for i in copy.graph.initializer}
    present = {o.name for o in copy.graph.output}
    for name in dict.fromkeys(taps):
        if name not in makers:
            raise ValueError(f'tap {name!r} is not made by any node of the model')
        if name not in present:
            copy.graph.output.append(helper.make_tensor_value_info(name, _type_of(name, makers, types), None))
    return copy


def with_own_zero_points(model: Any) -> Any:
    """A copy in which no two DequantizeLinear of int8 constants share one.

    With shared ones, ONNX Runtime 1.32 cannot load the file when it turns weights into uint8: it makes the new constant
    twice ("Attempt to replace the existing tensor").
    """
    copy = type(model)()
    copy.CopyFrom(model)
    tensors = {i.name: i for i in copy.graph.initializer if i.data_type == 3}  # TensorProto.INT8
    seen: set[str] = set()
    for node in copy.graph.node:
        for place, name in enumerate(node.input if node.op_type == 'DequantizeLinear' else ()):
            if name in tensors and name in seen:
                own = copy.graph.initializer.add()
                own.CopyFrom(tensors[name])
                own.name = node.input[place] = f'{name}_of_{node.output[0]}'
            seen.add(name)
    return copy


def _type_of(name: str, makers: dict[str, Any], types: dict[str, int]) -> int:
    node = makers[name]
    if node.op_type == 'QuantizeLinear':
        return types.get(node.input[2], 2) if len(node.input) > 2 else 2  # TensorProto.UINT8
    if node.op_type == 'Clip' and node.input[0] in makers:
        return _type_of(node.input[0], makers, types)
    return 1  # TensorProto.FLOAT
