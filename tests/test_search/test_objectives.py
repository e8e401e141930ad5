import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from models_for_tests import images

from mmquant.registry import OBJECTIVES
from mmquant.search import CrossEntropy, OutputDistance, OutputKL
from mmquant.search.objectives import build_objective, labels_of
from mmquant.utils.building import ConfigError

ROWS = torch.tensor([4, 0, 2])


def prepared(objective, references, labels=None):
    objective.prepare(references, labels)
    return objective


def samples(*labels):
    return [BaseDataElement(gt_label=torch.tensor(x)) for x in labels]


def test_cross_entropy_is_that_of_the_chosen_images():
    logits, labels = images(5, 4), torch.tensor([0, 3, 1, 1, 2])
    objective = prepared(CrossEntropy(), [], labels)
    expected = F.cross_entropy(logits[ROWS], labels[ROWS], reduction='sum')
    value = objective(logits[ROWS], ROWS)
    assert value.dtype == torch.float64 and value.item() == pytest.approx(expected.item(), rel=1e-6)
    parts = objective(logits[:2], torch.arange(2)) + objective(logits[2:], torch.arange(2, 5))
    assert parts.item() == pytest.approx(F.cross_entropy(logits, labels, reduction='sum').item(), rel=1e-6)


def test_divergence_by_hand_and_zero_at_the_float_network():
    reference = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    objective = prepared(OutputKL(), [reference[:1], reference[1:]])
    uniform = torch.zeros(1, 2)
    assert objective(uniform, torch.tensor([0])).item() == pytest.approx(0, abs=1e-7)
    expected = 0.25 * torch.log(torch.tensor(0.5)) + 0.75 * torch.log(torch.tensor(1.5))
    assert objective(uniform, torch.tensor([1])).item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective(reference + 3, torch.arange(2)).item() == pytest.approx(0, abs=1e-6)


def test_distance_is_relative_to_each_tensors_variance():
    small, large = images(6, 2, 3, 3), 100 * images(6, 4, seed=1)
    objective = prepared(OutputDistance(), [(small[:4], [large[:4]]), (small[4:], [large[4:]])])
    every = torch.arange(6)
    assert objective((small, [large]), every).item() == 0
    constant = (small.mean().expand_as(small), [large.mean().expand_as(large)])
    assert objective(constant, every).item() / 6 == pytest.approx(1, rel=1e-5)
    one_off = objective((small, [large + large.std(correction=0)]), every).item() / 6
    assert one_off == pytest.approx(0.5, rel=1e-5)


def test_gradients_and_determinism():
    logits = images(5, 4).requires_grad_()
    for objective in (prepared(CrossEntropy(), [], torch.arange(5) % 4), prepared(OutputKL(), [images(5, 4, seed=1)]),
                      prepared(OutputDistance(), [images(5, 4, seed=1)])):
        first = objective(logits, torch.arange(5))
        assert torch.equal(first, objective(logits, torch.arange(5)))
        assert torch.autograd.grad(first, logits)[0].abs().sum() > 0


def test_labels():
    assert labels_of([samples([3], [1]), samples([2])]).tolist() == [3, 1, 2]
    assert labels_of(None) is None and labels_of([]) is None
    assert labels_of([samples([3]), [BaseDataElement()]]) is None
    assert labels_of([samples([3, 1])]) is None  # several labels an image


def test_choice_without_a_config():
    logits, maps = images(2, 4), [images(2, 3, 4, 4), images(2, 3, 2, 2)]
    labels = torch.tensor([0, 1])
    assert isinstance(build_objective(None, labels, logits, 'x'), CrossEntropy)
    assert isinstance(build_objective(None, None, logits, 'x'), OutputKL)
    assert isinstance(build_objective(None, labels, maps, 'x'), OutputDistance)
    assert isinstance(build_objective(dict(type='mmquant.OutputKL'), labels, logits, 'x'), OutputKL)
    assert OBJECTIVES.get('mmquant.OutputDistance') is OutputDistance


def test_what_does_not_fit():
    with pytest.raises(ConfigError, match=r'CrossEntropy needs one label for each calibration image.*OutputKL'):
        CrossEntropy().prepare([], None)
    with pytest.raises(ConfigError, match=r'OutputKL needs one output of shape \(images, classes\), got '
                       r'\[\(2, 3, 4, 4\)\]; use objective=dict\(type="mmquant.OutputDistance"\)'):
        OutputKL().prepare([images(2, 3, 4, 4)], None)
    with pytest.raises(ConfigError, match='OutputDistance found no floating point tensor'):
        OutputDistance().prepare([torch.zeros(2, dtype=torch.long)], None)
    with pytest.raises(ConfigError, match=r"JointSearch\.objective: unknown type 'mmquant.OutputK'; did you mean"):
        build_objective(dict(type='mmquant.OutputK'), None, images(2, 4), 'JointSearch.objective')
