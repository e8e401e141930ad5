"""What stands for quantizers while a model is exported."""
import pytest
import torch

from mmquant.export.operators import dequantize_weight, quantize_dequantize


def test_known_codes():
    """Section 8.1: half to even, the zero point added behind the rounding."""
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 200.0])
    assert (quantize_dequantize(x, 1.0, 1, 0, 255) + 1).tolist() == [1, 3, 3, 1, 201]
    assert (quantize_dequantize(x, 1.0, 1, 0, 15) + 1).tolist() == [1, 3, 3, 1, 15]


def test_weights_have_the_scale_of_their_axis():
    codes = torch.tensor([[-40, 80], [16, -128]], dtype=torch.int8)
    scale = torch.tensor([0.5, 2.0])
    assert dequantize_weight(codes, scale, 0).tolist() == [[-20.0, 40.0], [32.0, -256.0]]
    assert dequantize_weight(codes, scale, 1).tolist() == [[-20.0, 160.0], [8.0, -256.0]]


def test_they_become_nodes_with_the_same_codes():
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from mmquant.export.operators import translations

    class Net(torch.nn.Module):
        def forward(self, x):
            return quantize_dequantize(x, 0.5, 3, 0, 15)

    x = torch.linspace(-3, 9, 97)[None]
    program = torch.onnx.export(Net(), (x, ), dynamo=True, opset_version=21, verbose=False,
                                custom_translation_table=translations())
    assert [n.op_type for n in program.model_proto.graph.node] == ['QuantizeLinear', 'Clip', 'DequantizeLinear']
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found, = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.equal(torch.from_numpy(found), quantize_dequantize(x, 0.5, 3, 0, 15))
