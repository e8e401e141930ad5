from dataclasses import dataclass

import pytest
import torch
from models_for_tests import MLP, BasicBlock, Chain, ResNet, calibrated, images, inserted, quantizer_cfg, randomize
from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.checkpoint import CheckpointError, read_quantized
from mmquant.models.edits import AddOutputAffine, CallsLayers, Edit, Folded, Merged, PlanError, edit_from_dict
from mmquant.models.plan import Place, Plan
from mmquant.registry import EDITS

AFFINE = dict(type='mmquant.UniformAffineQuantizer', bits=4)


class Doubled(nn.Module):
    """Twice a module of half the weights: the same function."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 2


@EDITS.register_module(force=True)
@dataclass(frozen=True)
class Double(Edit):
    """An edit of somebody else's: nothing of mmquant knows it."""
    names: tuple[str, ...]
    factor: float = 0.5

    def apply(self, model: nn.Module) -> None:
        for name in self.names:
            layer = self.module(model, name)
            layer.weight.data *= self.factor
            layer.bias.data *= self.factor
            setattr(model, name, Doubled(layer))


@torch.no_grad()
def test_an_edit_of_somebody_else(tmp_path):
    torch.manual_seed(0)
    x, exact = images(8, 8), MLP()
    model = QuantizedModel(exact, quantizer_cfg(), 'random')
    before = model(x)
    model.edit((Double(('fc1', )), ), x)
    torch.testing.assert_close(model(x), before)
    assert model.plan.edits == (Double(('fc1', )), )
    plan = model.make_plan(x)
    assert plan.layers == ('fc1.inner', 'fc2') and plan.edits == model.plan.edits
    model.insert_quantizers(plan)
    for q in (*model.weight_quantizers().values(), *model.activation_quantizers().values()):
        low = -torch.ones(q.scale.numel())
        q.set_range(low, -low)
    path = model.save(str(tmp_path / 'q.pth'))
    assert read_quantized(path)['plan']['edits'] == [dict(type='Double', names=['fc1'], factor=0.5)]
    other = QuantizedModel(MLP(), quantizer_cfg(), 'random')
    other.load(path)
    assert other.plan == model.plan and torch.equal(other(x), model(x))


def test_an_edit_that_changes_the_outputs_is_refused():
    """The error names the edit and the first module whose output differs."""
    model = QuantizedModel(randomize(Chain()), quantizer_cfg(), 'random')

    @dataclass(frozen=True)
    class Damage(Edit):

        def apply(self, model):
            model.convs[1].weight.data[0] *= 1.01

    with pytest.raises(RuntimeError, match=r'Damage\(\) changed the float output by \d\.\d+e-0\d of its largest value, '
                       r'more than the tolerance 1e-04; the first module whose output differs is convs\.1 \(Conv2d\)'):
        model.edit((Damage(), ), images(2, 3, 8, 8))
    assert model.plan is None
    model.edit((Damage(), ), images(2, 3, 8, 8), tolerance=1.0)


def test_a_wrong_fold_is_named(monkeypatch):
    """The layer's own output changes in any case; what follows the BatchNorm must not."""
    from mmquant.models import edits

    def wrong(layer, bn):
        fold(layer, bn)
        layer.bias.data += bn is model.architecture.layer1[0].bn2

    fold = edits.fold
    monkeypatch.setattr(edits, 'fold', wrong)
    model = QuantizedModel(randomize(ResNet()), quantizer_cfg(), 'random')
    with pytest.raises(RuntimeError, match=r"Folded\(layer='layer1\.0\.conv2', bn='layer1\.0\.bn2'\) changed "
                       r'.* differs is layer1\.0\.bn2 \(Identity\)'):
        model.fold_batch_norm(images(2, 3, 16, 16))


def test_a_model_that_is_random_is_not_checked():

    class Noisy(BasicBlock):

        def forward(self, x):
            return super().forward(x + torch.rand_like(x))

    QuantizedModel(randomize(Noisy(3, 3)), quantizer_cfg(), 'random').fold_batch_norm(images(2, 3, 4, 4))


def test_a_net_that_amplifies_rounding_is_not_refused():

    class Amplifying(BasicBlock):

        def forward(self, x):
            return (super().forward(x) * 1e4).sin()

    model = QuantizedModel(randomize(Amplifying(3, 3)), quantizer_cfg(), 'random')
    assert len(model.fold_batch_norm(images(2, 3, 16, 16))) == 2


@pytest.mark.parametrize('edit', [Folded('a', 'b'), CallsLayers('a', ('b', )), AddOutputAffine('fc3')])
def test_an_edit_whose_module_is_gone(edit):
    with pytest.raises(PlanError, match=rf'{type(edit).__name__}\(.*the model has no module .*another architecture'):
        edit.apply(MLP())
    with pytest.raises(PlanError, match='fc1 is a Linear, expected a BatchNorm'):
        Folded('fc2', 'fc1').apply(MLP())


def test_a_checkpoint_whose_module_is_gone(tmp_path):
    path = calibrated(randomize(Chain()), images(8, 3, 8, 8)).model.save(str(tmp_path / 'q.pth'))
    with pytest.raises(CheckpointError, match=r"q\.pth does not fit the model: place of the .* of convs\.\d: the model "
                       r"has no module 'convs\.\d'"):
        QuantizedModel(MLP(), quantizer_cfg(), 'random').load(path)


@pytest.mark.parametrize('change, text', [
    (dict(format=3), 'the plan has format 3, this mmquant reads up to 2; update mmquant'),
    (dict(places=[dict(name='fc1', what='weight', readers=[], shape=None, quantizer=None)]),
     r"place 'fc1' \(weight\) has no quantizer: expected dict\(type=\.\.\., bits=\.\.\.\), got None"),
    (dict(places=[dict(name='fc1', what='weights', readers=[], shape=None, quantizer=AFFINE)]),
     "place 'fc1': what must be one of weight, input, output, operand, got 'weights'"),
    (dict(edits=[dict(type='Fold', layer='a', bn='b')]), r"unknown edit 'Fold' \(did you mean 'Folded'\?\)"),
    (dict(notes=[]), "plan: unknown key 'notes'"),
])
def test_plans_that_cannot_be_read(change, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        Plan.from_dict({**Plan().to_dict(), **change})
    model = calibrated(MLP(), images(8, 8)).model
    data = dict(read_quantized(model.save(str(tmp_path / 'q.pth'))), format=1)
    torch.save(dict(data, plan={**data['plan'], **change}), tmp_path / 'q.pth')
    with pytest.raises(CheckpointError, match=f'q.pth holds a quantization plan that cannot be read .*{text}'):
        QuantizedModel(MLP(), quantizer_cfg(), 'random').load(str(tmp_path / 'q.pth'))


def test_edits_as_plain_values():
    for edit in (Merged(), Folded('a', 'b'), CallsLayers('a', ('a.b', 'a.c')), AddOutputAffine('x')):
        assert edit_from_dict(edit.to_dict()) == edit
    plan = Plan((Place('a', 'operand', AFFINE, call=1, role='left'), Place('b', 'input', AFFINE, ('b', 'c'),
                                                                             shape=(1, 2, 1, 1))),
                (('d', 'why'), ), (CallsLayers('a', ('a.b', )), ))
    assert Plan.from_dict(plan.to_dict()) == plan and plan.inputs == {'b': plan.places[1], 'c': plan.places[1]}


def test_the_note_is_prose_only():
    """Other reasons change a column of a table and nothing else."""
    from dataclasses import replace

    from mmquant.analysis.sensitivity import quantizers_of
    from mmquant.models.cost import model_cost
    context = inserted(randomize(ResNet()), images(4, 3, 16, 16), overrides=[dict(pattern='fc', w_bits=None)])
    model, found = context.model, []
    for reason in ('', 'quantized at layer1.0'):
        model.plan = replace(model.plan, float_layers=(('fc', reason), ))
        cost = model_cost(model, 2)
        found.append(([replace(x, note='') for x in cost.layers], cost.size_mb, cost.bops, quantizers_of(model)))
    assert found[0] == found[1] and found[0][0][-1].a_bits == 4
