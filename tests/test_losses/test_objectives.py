from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from models_for_tests import MLP, images, inserted

from mmquant.calibration.context import labels_of
from mmquant.losses import CrossEntropy, LogitDistance, OutputDivergence
from mmquant.losses.objectives import build_objective
from mmquant.registry import OBJECTIVES
from mmquant.utils.building import ConfigError


def prepared(objective, references, labels=None):
    sizes = [len(r[0] if isinstance(r, list) else r) for r in references]
    objective.prepare(SimpleNamespace(run=references.__getitem__, sizes=sizes, labels=labels))
    return objective


def samples(*labels):
    return [BaseDataElement(gt_label=torch.tensor(x)) for x in labels]


def test_cross_entropy_is_summed_over_images():
    logits, labels = images(5, 4), torch.tensor([0, 3, 1, 1, 2])
    objective = prepared(CrossEntropy(), [logits[:2], logits[2:]], [labels[:2], labels[2:]])
    value = objective(logits[:2], 0) + objective(logits[2:], 1)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(F.cross_entropy(logits, labels, reduction='sum').item(), rel=1e-6)
    rows = torch.tensor([2, 0])
    expected = F.cross_entropy(logits[[4, 2]], labels[[4, 2]], reduction='sum').item()
    assert objective(logits[2:][rows], 1, rows).item() == pytest.approx(expected, rel=1e-6)


def test_divergence_by_hand_and_zero_at_the_float_network():
    reference = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    objective = prepared(OutputDivergence(), [reference[:1], reference[1:]])
    uniform = torch.zeros(1, 2)
    expected = 0.25 * torch.log(torch.tensor(0.5)) + 0.75 * torch.log(torch.tensor(1.5))
    assert objective(uniform, 0).item() == pytest.approx(0, abs=1e-7)
    assert objective(uniform, 1).item() == pytest.approx(expected.item(), rel=1e-5)
    both = prepared(OutputDivergence(), [reference])
    assert both(reference, 0).item() == 0
    assert both(uniform.expand(2, 2), 0).item() == pytest.approx(expected.item(), rel=1e-5)  # a sum, not a mean
    assert both(uniform, 0, torch.tensor([1])).item() == pytest.approx(expected.item(), rel=1e-5)


def test_logit_distance_by_hand():
    reference = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]])
    objective = prepared(LogitDistance(), [reference])
    assert objective(reference + 5, 0).item() == pytest.approx(0, abs=1e-10)  # a shift moves no probability
    # off by (2, -1, -1) and (0, 0, 0): mean of squares 2, summed over images
    moved = reference + torch.tensor([[2.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    assert objective(moved, 0).item() == pytest.approx(2)
    assert objective(moved[[1]], 0, torch.tensor([1])).item() == pytest.approx(0, abs=1e-10)
    x = moved.clone().requires_grad_()
    objective(x, 0).backward()
    assert x.grad[0].tolist() == pytest.approx([4 / 3, -2 / 3, -2 / 3])


def test_logit_distance_leaves_outputs_of_detectors_alone():
    levels = [images(2, 3, 8, 8), images(2, 4, 8, 8)]
    moved = [x + 0.5 for x in levels]
    plain, distance = (prepared(kind(), [levels]) for kind in (OutputDivergence, LogitDistance))
    assert distance(moved, 0).item() == plain(moved, 0).item() > 0


def test_several_outputs_and_chunks_of_other_sizes():
    chunks = [[images(2, 3, 8, 8), images(2, 4, 8, 8)], [images(3, 3, 4, 6), images(3, 4, 4, 6)]]
    objective = prepared(OutputDivergence(), chunks)
    assert [objective(c, i).item() for i, c in enumerate(chunks)] == [0, 0]
    moved = [c + 1 for c in chunks[1]]
    assert objective(moved, 1).item() > 0
    rows = torch.tensor([0, 2])
    assert objective([c[rows] for c in chunks[1]], 1, rows).item() == 0


def test_gradients_and_determinism():
    logits = images(5, 4).requires_grad_()
    for objective in (prepared(CrossEntropy(), [logits], [torch.arange(5) % 4]),
                      prepared(OutputDivergence(), [images(5, 4, seed=1)])):
        first = objective(logits, 0)
        assert torch.equal(first, objective(logits, 0))
        assert torch.autograd.grad(first, logits)[0].abs().sum() > 0


def test_labels():
    assert [x.tolist() for x in labels_of([samples([3], [1]), samples([2])])] == [[3, 1], [2]]
    assert labels_of(None) is None and labels_of([]) is None
    assert labels_of([samples([3]), [BaseDataElement()]]) is None
    assert labels_of([samples([3, 1])]) is None  # several labels an image


def test_choice_without_a_config():
    context = inserted(MLP(), images(4, 8), chunk=2)
    assert isinstance(build_objective(context, None, 'x'), OutputDivergence)
    context = replace(context, samples=[samples(0, 1), samples(2, 3)])
    assert isinstance(build_objective(context, None, 'x'), CrossEntropy)
    assert OBJECTIVES.get('mmquant.OutputDivergence') is OutputDivergence


def test_what_does_not_fit():
    with pytest.raises(ConfigError, match=r'CrossEntropy needs one label for each calibration image.*OutputDivergence'):
        prepared(CrossEntropy(), [])
    maps = images(2, 3, 4, 4)
    with pytest.raises(ConfigError, match=r'CrossEntropy needs one output of shape \(images, classes\), got '
                       r'\[\(2, 3, 4, 4\)\]; use objective=dict\(type="mmquant.OutputDivergence"\)'):
        prepared(CrossEntropy(), [maps], [torch.tensor([0, 1])])(maps, 0)
    with pytest.raises(ConfigError, match='OutputDivergence found no floating point tensor'):
        prepared(OutputDivergence(), [torch.zeros(2, dtype=torch.long)])
    with pytest.raises(ConfigError, match=r"JointSearch\.objective: unknown type 'mmquant.OutputD'"):
        build_objective(inserted(MLP(), images(2, 8)), dict(type='mmquant.OutputD'), 'JointSearch.objective')
