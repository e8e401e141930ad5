"""The optional package onnx, in one place: whoever needs it when it is missing is told how to get it."""
from mmquant.export._extras import need

onnx, helper, numpy_helper = (need(name) for name in ('onnx', 'onnx.helper', 'onnx.numpy_helper'))
TensorProto = onnx.TensorProto
