"""Small QDQ graphs with random codes, as the exporter writes them."""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference


class Graph:
    """Collects nodes; every method returns the name of the tensor that it makes.

    Without ``scale``, scales are random: 0.01 to 0.1, never in small ratios.
    """

    def __init__(self, seed=0, largest=64, step=1):
        self.rng, self.largest = np.random.default_rng(seed), largest
        self.step = step  # weight codes are multiples of it
        self.nodes, self.inits, self.inputs, self.outputs, self.scales, self.zeros = [], {}, [], [], {}, {}
        self.count = 0

    def fresh(self, stem):
        self.count += 1
        return f'{stem}_{self.count}'

    def const(self, value, stem='c'):
        name = self.fresh(stem)
        self.inits[name] = np.asarray(value)
        return name

    def node(self, op, inputs, outputs=1, **attributes):
        names = [self.fresh(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=self.fresh(f'node_{op}'), **attributes))
        if inputs[0] in self.scales and op in ('MaxPool', 'Reshape', 'Flatten', 'Transpose', 'Pad', 'Slice', 'Resize'):
            self.scales[names[0]] = self.scales[inputs[0]]
        return names[0] if outputs == 1 else names

    def input(self, shape, name='images', dtype=TensorProto.FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name, dtype=TensorProto.FLOAT):
        self.outputs.append(helper.make_tensor_value_info(name, dtype, None))
        return name

    def random_scale(self):
        return np.float32(self.rng.uniform(0.01, 0.1))

    def qdq(self, x, scale=None, zero=None, clip=None, dequantize=True):
        """Q -> [Clip on codes] -> DQ of an activation; uint8."""
        scale = self.random_scale() if scale is None else np.float32(scale)
        zero = np.uint8(self.rng.integers(0, 256) if zero is None else zero)
        s, z = self.const(scale, 'scale'), self.const(zero, 'zero')
        codes = self.node('QuantizeLinear', [x, s, z])
        if clip:
            codes = self.node('Clip', [codes, self.const(np.uint8(clip[0])), self.const(np.uint8(clip[1]))])
        if not dequantize:
            return codes
        out = self.node('DequantizeLinear', [codes, s, z])
        self.scales[out], self.zeros[out] = scale, z
        return out

    def weight(self, shape, axis=0, codes=None, scale=None):
        """int8 codes -> DQ along the axis of output channels; returns (name, scales)."""
        if codes is None:
            top = self.largest // self.step
            codes = (self.rng.integers(-top, top + 1, shape) * self.step).astype(np.int8)
        if scale is None:
            scale = self.rng.uniform(0.002, 0.004, shape[axis]).astype(np.float32)
        zero = np.zeros(scale.shape, np.int8)
        w = codes if isinstance(codes, str) else self.const(codes, 'w')
        return self.node('DequantizeLinear', [w, self.const(scale), self.const(zero)], axis=axis), scale

    def bias(self, x, scale, codes=None):
        """int32 codes on the grid of s_x s_w."""
        if codes is None:
            codes = self.rng.integers(-3000, 3000, scale.size).astype(np.int32)
        grid = (self.scales[x] * scale).astype(np.float32)
        return self.node('DequantizeLinear', [self.const(codes), self.const(grid),
                                              self.const(np.zeros(scale.size, np.int32))], axis=0)

    def conv(self, x, shape, bias=True, **attributes):
        w, scale = self.weight(shape)
        return self.node('Conv', [x, w, self.bias(x, scale)] if bias else [x, w], **attributes)

    def gemm(self, x, shape, **attributes):
        """transB = 1, shape (N, K)."""
        w, scale = self.weight(shape)
        return self.node('Gemm', [x, w, self.bias(x, scale)], transB=1, **attributes)

    def model(self, opset=21, ir_version=10):
        inits = [v if hasattr(v, 'data_type') else numpy_helper.from_array(v, k) for k, v in self.inits.items()]
        graph = helper.make_graph(self.nodes, 'graph', self.inputs, self.outputs, inits)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=ir_version)
        return shape_inference.infer_shapes(model)


def residual_net(seed=0, bits=8, largest=64, step=1, opset=21):
    """Stem, depthwise and grouped convs, a residual block, a global pool and a classifier: all in integers."""
    top = None if bits == 8 else (0, 2**bits - 1)
    wide = 255 / (2**bits - 1)
    g = Graph(seed, largest, step)
    x = g.qdq(g.input(['batch', 3, 16, 16]), 0.0173, 113)
    x = g.qdq(g.node('Relu', [g.conv(x, (8, 3, 3, 3), pads=[1] * 4)]), 0.0171 * wide, 0, top)
    x = g.node('MaxPool', [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    y = g.qdq(g.node('Relu', [g.conv(x, (8, 1, 3, 3), pads=[1] * 4, group=8)]), 0.0071 * wide, 0, top)
    y = g.qdq(g.conv(y, (8, 4, 3, 3), pads=[1] * 4, group=2), 0.0219, 131)
    x = g.qdq(g.node('Relu', [g.node('Add', [x, y])]), 0.0187 * wide, 0, top)
    y = g.qdq(g.node('Relu', [g.conv(x, (16, 8, 3, 3), pads=[1] * 4, strides=[2, 2])]), 0.0193 * wide, 0, top)
    z = g.qdq(g.conv(x, (16, 8, 1, 1), strides=[2, 2]), 0.0229, 120)
    w = g.qdq(g.conv(y, (16, 16, 3, 3), pads=[2] * 4, dilations=[2, 2]), 0.0411, 128)
    x = g.qdq(g.node('Relu', [g.node('Add', [w, z])]), 0.0253, 0)
    x = g.qdq(g.node('GlobalAveragePool', [x]), 0.0131, 0)
    x = g.node('Reshape', [x, g.const(np.array([-1, 16], np.int64))])
    g.output(g.gemm(x, (10, 16)))
    return g.model(opset, 13 if opset >= 25 else 10)


def small_graph(kind, seed=0, scales=(None, None, None)):
    """One operator ``kind`` on one or two quantized inputs ``a`` and ``b`` of (n, 6, 9, 9), quantized again."""
    g = Graph(seed)
    a, b = (g.qdq(g.input(['n', 6, 9, 9], name), scale) for name, scale in zip('ab', scales))
    pool = dict(kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 1])
    zero = None

    def integers(*values):
        return g.const(np.array(values, np.int64))

    def resized():
        size = g.const(np.array([1, 1, 2, 2], np.float32))
        y = g.node('Resize', [a, '', size], mode='nearest', coordinate_transformation_mode='asymmetric',
                   nearest_mode='floor')
        return g.qdq(y, g.scales[a], g.inits[g.zeros[a]])

    def product(other):
        return g.node('MatMul', [g.node('Reshape', [a, integers(-1, 9)]), other])

    if kind in ('Add', 'Mul'):
        y = g.node(kind, [a, b])
    elif kind == 'AddRelu':
        y, zero = g.node('Relu', [g.node('Add', [a, b])]), 0
    elif kind == 'Concat':
        y = g.node('Concat', [a, b], axis=1)
    elif kind == 'GlobalAveragePool':
        y = g.node(kind, [g.node('Slice', [a, integers(1, 1), integers(9, 9), integers(2, 3)])])
    elif kind == 'AveragePool':
        y = g.node(kind, [a], **pool)
    elif kind == 'AveragePoolPadded':
        y = g.node('AveragePool', [a], count_include_pad=1, **pool)
    elif kind == 'LeakyRelu':
        y = g.node(kind, [a], alpha=0.1)
    elif kind == 'SiLU':
        y = g.node('Mul', [a, g.qdq(g.node('Sigmoid', [a]), 1 / 256, 0)])
    elif kind == 'Conv':
        y = g.conv(a, (8, 6, 3, 3), pads=[0, 1, 2, 1], strides=[2, 1])
    elif kind == 'ConvDilated':
        y = g.conv(a, (8, 6, 3, 3), bias=False, dilations=[2, 2])
    elif kind == 'ConvTwoPerChannel':
        y = g.conv(a, (12, 1, 3, 3), group=6)
    elif kind == 'ConvFloatBias':
        w, _ = g.weight((8, 6, 3, 3))
        y = g.node('Conv', [a, w, g.const(g.rng.normal(size=8).astype(np.float32))])
    elif kind == 'ConvRelu6':
        y, zero = g.node('Clip', [g.conv(a, (8, 6, 3, 3)), g.const(np.float32(0)), g.const(np.float32(6))]), 0
        scales = (*scales[:2], 6 / 255)
    elif kind == 'Resize':
        y = g.conv(resized(), (4, 6, 3, 3))
    elif kind == 'Pad':
        y = g.conv(g.node('Pad', [a, integers(0, 0, 1, 1, 0, 0, 2, 2)]), (4, 6, 3, 3))
    elif kind == 'Slice':
        y = g.conv(g.node('Slice', [a, integers(0, 1), integers(9, 9), integers(2, 3), integers(1, 2)]), (4, 6, 3, 3))
    elif kind == 'MaxPool':
        y = g.conv(g.node('MaxPool', [a], **pool), (4, 6, 3, 3))
    elif kind == 'Gemm':
        y = g.gemm(g.node('Reshape', [a, integers(-1, 9)]), (5, 9))
    elif kind == 'MatMul':
        y = product(g.weight((9, 7), axis=1)[0])
    elif kind == 'MatMulAdd':
        w, scale = g.weight((9, 7), axis=1)
        y = g.node('Add', [product(w), g.bias(a, scale)])
    elif kind == 'MatMulTwo':
        y = g.node('MatMul', [a, g.node('Transpose', [b], perm=[0, 1, 3, 2])])
    g.output(g.qdq(y, scales[2], zero))
    return g.model()


KINDS = ['Add', 'AddRelu', 'Mul', 'Concat', 'GlobalAveragePool', 'AveragePool', 'AveragePoolPadded', 'LeakyRelu',
         'SiLU', 'Conv', 'ConvDilated', 'ConvTwoPerChannel', 'ConvFloatBias', 'ConvRelu6', 'Resize', 'Pad', 'Slice',
         'MaxPool', 'Gemm', 'MatMul', 'MatMulAdd', 'MatMulTwo']


def random_inputs(model, seed=0, count=2):
    """Normal numbers for the inputs, twice as wide as the range of 0 +- 1; one for each name."""
    rng = np.random.default_rng(seed)
    sizes = {i.name: [d.dim_value or count for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: (3 * rng.normal(size=size)).astype(np.float32) for name, size in sizes.items()}


def packed(model, bits=4):
    """The same model with int8 weights that are ``bits`` wide as codes -> Cast -> Sub -> Mul -> Cast."""
    packed_model = onnx.ModelProto()
    packed_model.CopyFrom(model)
    graph = packed_model.graph
    kind = {4: TensorProto.UINT4, 2: TensorProto.UINT2}[bits]
    before = []
    for tensor in [t for t in graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1]:
        codes = numpy_helper.to_array(tensor).astype(np.int32)
        factor = 2 ** (8 - bits)
        small = codes // factor + 2 ** (bits - 1)
        assert (small >= 0).all() and (small < 2**bits).all() and ((small - 2 ** (bits - 1)) * factor == codes).all()
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.append(helper.make_tensor(name + '_packed', kind, small.shape, small.flatten()))
        graph.initializer.append(numpy_helper.from_array(np.int32(2 ** (bits - 1)), name + '_zero'))
        graph.initializer.append(numpy_helper.from_array(np.int32(factor), name + '_factor'))
        before += [helper.make_node('Cast', [name + '_packed'], [name + '_wide'], to=TensorProto.INT32),
                   helper.make_node('Sub', [name + '_wide', name + '_zero'], [name + '_sub']),
                   helper.make_node('Mul', [name + '_sub', name + '_factor'], [name + '_mul']),
                   helper.make_node('Cast', [name + '_mul'], [name], to=TensorProto.INT8)]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend(before + rest)
    return packed_model
