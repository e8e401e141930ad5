import weakref

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import Attention, ResNet, flow_of, images
from torch import nn

from mmquant.models.dataflow import wrapped_forwards
from mmquant.models.recorder import make_out_of_place, record


class Lambda(nn.Module):
    """A model whose forward is a function of its children."""

    def __init__(self, function, **children) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args):
        return self.function(self, *args)


def names(ops) -> list[str]:
    return [op.name for op in ops]


def test_calls_nest_and_hold_their_tensors():
    flow = flow_of(ResNet(), images(2, 3, 8, 8))
    root, conv1 = flow.calls[0], flow.calls_of['conv1'][0]
    assert (root.name, root.parent, root.inputs) == ('', -1, flow.network_inputs) and conv1.inputs == root.inputs
    assert root.enter < conv1.enter < conv1.exit < root.exit
    inner = flow.calls_of['layer1.0.conv2'][0]
    assert [c.name for c in flow.ancestors(inner.index)] == ['layer1.0.conv2', 'layer1.0', 'layer1', '']
    assert flow.calls_of['bn1'][0].inputs == conv1.outputs
    assert flow.shapes[conv1.outputs[0]] == (2, 4, 8, 8) and flow.shapes[root.outputs[0]] == (2, 5)
    assert names(flow.ops_within(conv1)) == ['convolution']
    assert [flow.calls[i].name for i in root.children] == ['conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2',
                                                           'avgpool', 'fc']


def test_residual_net_has_its_adds_in_its_blocks():
    flow = flow_of(ResNet(), images(2, 3, 8, 8))
    adds = [op for op in flow.ops if op.name == 'add' and len(op.inputs) == 2]
    assert [flow.calls[op.call].name for op in adds] == ['layer1.0', 'layer1.1', 'layer2.0', 'layer2.1']
    first = flow.calls_of['layer1.0'][0]
    assert set(adds[0].inputs) == {flow.calls_of['layer1.0.bn2'][0].outputs[0], first.inputs[0]}
    assert all(flow.depends_on(v, first.inputs[0]) for v in adds[0].inputs)
    assert not flow.depends_on(first.inputs[0], first.outputs[0])
    assert all(flow.is_closed(flow.calls_of[n][0]) for n in ('layer1', 'layer1.0', 'layer2.0.downsample', 'fc', ''))


def test_shared_module_is_called_twice():
    flow = flow_of(ResNet(), images(2, 3, 8, 8))
    relus = flow.calls_of['layer1.0.relu']
    assert [c.key for c in relus] == [('layer1.0.relu', 0), ('layer1.0.relu', 1)]
    assert relus[0].outputs != relus[1].outputs and relus[1].outputs == flow.calls_of['layer1.0'][0].outputs


def test_inplace_activations_become_out_of_place():
    model = ResNet()
    flow = flow_of(model, images(2, 3, 8, 8))
    assert not model.relu.inplace and not model.layer1[0].relu.inplace
    relu = flow.calls_of['relu'][0]
    assert relu.inputs != relu.outputs and relu.inputs[0] not in flow.mutated
    make_out_of_place(nn.Sequential(relu6 := nn.ReLU6(inplace=True)))
    assert relu6.inplace is False


def test_inplace_add_makes_a_new_value():

    def forward(self, x):
        y = self.conv(x)
        y += x
        return y

    flow = flow_of(Lambda(forward, conv=nn.Conv2d(3, 3, 1)), images(1, 3, 4, 4))
    conv = flow.calls_of['conv'][0]
    add = flow.producer[flow.calls[0].outputs[0]]
    assert add.name == 'add' and set(add.inputs) == {conv.outputs[0], flow.network_inputs[0]}
    assert flow.calls[0].outputs != conv.outputs and flow.mutated == {conv.outputs[0]}


def test_functional_relu_belongs_to_the_calling_module():
    flow = flow_of(Lambda(lambda self, x: F.relu(self.conv(x)), conv=nn.Conv2d(3, 3, 1)), images(1, 3, 4, 4))
    relu = flow.producer[flow.calls[0].outputs[0]]
    assert (relu.name, relu.call) == ('relu', 0) and relu.inputs == flow.calls_of['conv'][0].outputs


def test_view_chains_lead_to_their_root():

    def forward(self, x):
        y = self.conv(x)
        return self.fc(y.flatten(2).transpose(1, 2)[:, 1:].contiguous()) + y.mean()

    flow = flow_of(Lambda(forward, conv=nn.Conv2d(3, 5, 1), fc=nn.Linear(5, 2)), images(2, 3, 4, 4))
    made, read = flow.calls_of['conv'][0].outputs[0], flow.calls_of['fc'][0].inputs[0]
    assert made != read and flow.root(read) == made and flow.root(made) == made
    assert set(names(flow.final_readers(made))) <= {'addmm', 'mm', 'linear', 'mean', 'add'}
    assert 'mean' in names(flow.final_readers(made)) and len(flow.final_readers(made)) == 2
    through = flow.final_readers(made, frozenset({'mean'}))
    assert 'add' in names(through) and 'mean' not in names(through)


def test_concatenation_is_no_view():
    flow = flow_of(Lambda(lambda self, x: torch.cat([x, x * 2], 1)), images(1, 3, 2, 2))
    out = flow.calls[0].outputs[0]
    assert flow.root(out) == out and len(flow.producer[out].inputs) == 2


def test_module_with_a_leak_is_not_closed():
    """What is read inside and outside makes no unit."""

    def outer(self, x):
        y = self.inner(x)
        return y + self.inner.kept

    def inner(self, x):
        self.kept = self.a(x)
        return self.b(self.kept)

    model = Lambda(outer, inner=Lambda(inner, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1)))
    flow = flow_of(model, images(1, 3, 2, 2))
    assert not flow.is_closed(flow.calls_of['inner'][0]) and flow.is_closed(flow.calls_of['inner.a'][0])


def test_module_that_reads_two_tensors_is_not_closed():
    child = Lambda(lambda self, a, b: self.conv(a) + b, conv=nn.Conv2d(3, 3, 1))
    flow = flow_of(Lambda(lambda self, x: self.child(x, x * 2), child=child), images(1, 3, 2, 2))
    assert not flow.is_closed(flow.calls_of['child'][0])


def test_constants_are_no_values():
    """Tensors that do not depend on the input leave no trace."""
    flow = flow_of(Lambda(lambda self, x: x + torch.ones(3).sum()), images(1, 3))
    assert names(flow.ops) == ['add'] and flow.ops[0].inputs == flow.network_inputs


def test_nested_inputs_and_outputs():
    model = Lambda(lambda self, d: dict(y=[d['a'] + d['b'][0]], z=d['a']))
    flow = flow_of(model, dict(a=images(1, 2), b=(images(1, 2),)))
    assert len(flow.network_inputs) == 2 and flow.calls[0].inputs == flow.network_inputs
    assert len(flow.calls[0].outputs) == 2 and flow.calls[0].outputs[1] == flow.network_inputs[0]


@pytest.mark.parametrize('fused', [False, True])
def test_matrix_products_inside_attention(fused):
    flow = flow_of(Attention(fused=fused), images(2, 5, 8))
    assert dict(flow.matmuls) == {'': {0: 'attention'} if fused else {0: 'matmul', 1: 'matmul'}}


def test_products_with_a_constant_are_not_sites():

    def forward(self, x):
        return torch.matmul(x, self.w) @ x.transpose(1, 2)

    model = Lambda(forward)
    model.w = torch.eye(4)
    assert dict(flow_of(model, images(2, 3, 4)).matmuls) == {'': {1: 'matmul'}}


def test_products_called_by_keyword():

    def forward(self, x):
        return torch.matmul(input=x, other=self.w) + torch.bmm(input=x, mat2=x)

    model = Lambda(forward)
    model.w = torch.eye(4)
    assert dict(flow_of(model, images(2, 4, 4)).matmuls) == {'': {1: 'matmul'}}


def test_slice_assignment_is_a_dependency():
    """Writing into a part of a tensor changes the tensor."""

    def forward(self, x):
        y = self.conv(x)
        y[:, :1] += self.side(x)
        return self.last(y)

    model = Lambda(forward, conv=nn.Conv2d(3, 3, 1), side=nn.Conv2d(3, 1, 1), last=nn.Conv2d(3, 3, 1))
    flow = flow_of(model, images(1, 3, 2, 2))
    side, last = flow.calls_of['side'][0], flow.calls_of['last'][0]
    assert flow.depends_on(last.inputs[0], side.outputs[0])
    assert last.inputs != flow.calls_of['conv'][0].outputs and flow.calls_of['conv'][0].outputs[0] in flow.mutated


def test_filling_a_fresh_tensor_is_a_dependency():
    """Padding by hand: ``out[..., :h] = x``."""

    def forward(self, x):
        out = x.new_zeros(1, 3, 4, 4)
        out[..., :2] = self.a(x)
        out[..., 2:] = self.b(x)
        return self.last(out)

    model = Lambda(forward, **{k: nn.Conv2d(3, 3, 1) for k in ('a', 'b', 'last')})
    flow = flow_of(model, images(1, 3, 4, 2))
    read = flow.calls_of['last'][0].inputs
    assert len(read) == 1
    assert all(flow.depends_on(read[0], flow.calls_of[k][0].outputs[0]) for k in 'ab')


def test_wrapped_forwards_are_restored_after_errors():
    model = ResNet()

    def broken(name, module, forward):
        def f(*args):
            raise KeyError(name)
        return f

    model.fc.forward = original = model.fc.forward
    with pytest.raises(KeyError, match='conv1'):
        with wrapped_forwards(model, broken, {'conv1', 'fc'}):
            model(images(1, 3, 8, 8))
    assert 'forward' not in model.conv1.__dict__ and model.fc.__dict__['forward'] is original


def test_recording_changes_no_output():
    model, x = ResNet().eval(), images(2, 3, 8, 8)
    with torch.no_grad():
        before = model(x)
        flow_of(model, x)
        assert torch.equal(model(x), before)
    assert all('forward' not in m.__dict__ for m in model.modules())


class Chain(nn.Module):
    """Notes whether the first layer's output is still there behind the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.a(x)
        first = weakref.ref(y)
        y = self.b(y)
        self.kept = first() is not None
        constant = torch.zeros(len(y), 2)
        constant[:, 0] = y.mean((1, 2, 3))  # the written view is gone at once
        return constant


def test_recording_keeps_no_activations():
    """Memory is that of a forward pass; data written into a constant are still followed."""
    model = Chain().eval()
    flow = record(model, model, images(2, 3, 4, 4))
    assert model.kept is False
    out, = flow.calls[0].outputs
    assert flow.depends_on(out, flow.calls_of['a'][0].outputs[0])
