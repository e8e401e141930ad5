"""Sums of two products that leave 16 bits: on x86 without VNNI, uint8 x int8 kernels cut them off, without a message.

The kernels multiply and add neighbours along the summed axis in one instruction (vpmaddubsw) whose result is int16.
Measured with ONNX Runtime 1.32 on AVX2: wrong sums in convs (dense, grouped, 1 x 1), QGemm, QLinearMatMul and
MatMulInteger, from weight codes of 65 on; never in depthwise convs and never with uint8 weights. Neighbours are codes
2i and 2i + 1 in the order (kernel, input channels of the group) of a conv, or along K of a product. Codes up to 127 of
activations, and weights within -64..64, are always safe.

ONNX Runtime avoids it with the session option ``session.x64quantprecision``: weights become uint8 when the file is
loaded, only where they leave -64..63 and only on such a CPU; 3 x 3 convs then take 1.3 to 1.9 times as long.
"""
from pathlib import Path
from typing import Any

import numpy as np

from mmquant.export.executor.graph_executor import GraphExecutor
from mmquant.export.executor.plan import PRODUCTS, Step

VNNI = {'avx512_vnni', 'avx_vnni', 'avx_vnni_int8'}


def cpu_saturates(cpuinfo: str | Path = '/proc/cpuinfo') -> bool:
    """An x86 CPU without VNNI, by the flags that Linux reports; False where there are none, as on ARM."""
    path = Path(cpuinfo)
    lines = path.read_text().splitlines() if path.exists() else []
    flags = next((set(line.partition(':')[2].split()) for line in lines if line.startswith('flags')), set())
    return bool(flags) and not flags & VNNI


def saturates(model: Any) -> list[str]:
    """Names of the layers in which two neighbouring products can leave int16, for the largest codes of their inputs.

    Args:
        model (str | PathLike | onnx.ModelProto | GraphExecutor): The exported file.
    """
    executor = model if isinstance(model, GraphExecutor) else GraphExecutor(model)
    return [s.node.name for s in executor.steps
            if s.kind == 'kernel' and s.node.op in PRODUCTS and _leaves_int16(executor, s)]


def _leaves_int16(executor: GraphExecutor, step: Step) -> bool:
    view = executor.view
    source = view.maker[step.inputs[1]].inputs[0] if step.inputs[1] in view.maker else ''
    codes = view.constants.get(source)
    if codes is None or codes.dtype != np.int8:  # two activations: uint8 x uint8
        return False
    if step.node.op == 'Conv':
        group = step.node.attributes.get('group', 1)
        if codes.shape[1] == 1 and codes.shape[0] == group:
            return False
        rows = np.moveaxis(codes, 1, -1).reshape(len(codes), -1)
    else:
        rows = codes if step.node.attributes.get('transB', 0) else codes.swapaxes(-1, -2).reshape(-1, codes.shape[-2])
    rows = np.pad(rows.astype(np.int64), ((0, 0), (0, rows.shape[1] % 2)))
    pairs = rows.reshape(len(rows), -1, 2)
    top = largest_code(executor, step.inputs[0])
    return bool((pairs.clip(min=0).sum(-1) * top > 32767).any() or (pairs.clip(max=0).sum(-1) * top < -32768).any())


def largest_code(executor: GraphExecutor, name: str) -> int:
    """Largest code of a quantized tensor, by the Clip behind its QuantizeLinear, through layout operators; else 255."""
    makers = {o: s for s in executor.steps for o in s.outputs}
    while name in makers and makers[name].kind in ('layout', 'codes', 'dequantize'):
        name = makers[name].inputs[0]
    step = makers.get(name)
    if step is None or step.kind != 'clip' or len(step.inputs) < 3 or not step.inputs[2]:
        return 255
    return int(executor.view.constants[step.inputs[2]])
