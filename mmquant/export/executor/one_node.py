"""A single node of a graph, run by ONNX Runtime: float islands, and layout operators on codes."""
from typing import Any

import numpy as np

from mmquant.export._extras import need


class OneNode:
    """Runs ``proto`` on NumPy arrays; None for inputs that are left out. Sessions are kept by the types of the inputs.

    Args:
        proto (onnx.NodeProto): The node.
        opsets (dict[str, int]): Domain -> version, of the model that it is from.
    """

    def __init__(self, proto: Any, opsets: dict[str, int]) -> None:
        self.proto, self.opsets = proto, opsets
        self.sessions: dict[tuple, Any] = {}

    def __call__(self, values: list[np.ndarray | None]) -> list[np.ndarray | None]:
        """The node's outputs; None for those that are left out.

        Raises:
            ValueError: The runtime refuses the node or these values.
        """
        feeds = {name: value for name, value in zip(self.proto.input, values) if name}
        key = tuple(v.dtype.str for v in feeds.values())
        try:
            if key not in self.sessions:
                self.sessions[key] = self._session(feeds)
            results = iter(self.sessions[key].run(None, feeds))
        except Exception as error:
            raise ValueError(f'{self.proto.op_type} node {self.proto.name!r} cannot run on '
                             f'{[(v.dtype.name, v.shape) for v in feeds.values()]}: {error}') from error
        return [next(results) if name else None for name in self.proto.output]

    def _session(self, feeds: dict[str, np.ndarray]) -> Any:
        helper, runtime = need('onnx.helper'), need('onnxruntime')
        info = helper.make_tensor_value_info
        inputs = [info(k, helper.np_dtype_to_tensor_dtype(v.dtype), None) for k, v in feeds.items()]
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.proto.output if name]
        graph = helper.make_graph([self.proto], 'node', inputs, outputs)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return runtime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
