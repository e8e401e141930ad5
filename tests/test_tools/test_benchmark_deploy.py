"""What benchmark_deploy.py compares, and how; its figures are not judged here."""
import time

import pytest
import torch
from torch import nn

pytest.importorskip('onnxruntime')
import benchmark_deploy  # noqa: E402
import numpy as np  # noqa: E402
import onnx  # noqa: E402
from deploy_files import OURS, make_files, with_statistics  # noqa: E402
from onnx import TensorProto, numpy_helper  # noqa: E402

from mmquant.export.runtime import RuntimeSession  # noqa: E402


class Toy(nn.Module):
    """A residual block, a pool and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.relu1(self.conv1(x))
        x = self.relu3(x + self.conv3(self.relu2(self.conv2(x))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope='module')
def images():
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def files(images, tmp_path_factory):
    torch.manual_seed(0)
    return make_files(Toy().eval(), images, tmp_path_factory.mktemp('files'), dict(w8a8=(8, 8), w2a4=(2, 4)))


def arguments(*words):
    return benchmark_deploy.parse_args(words)


def test_all_files_answer_as_the_float_model_does(files, images):
    inputs = dict(images=images[:1].numpy())
    answers = {label: next(iter(RuntimeSession(path).run(inputs).values())) for label, path in files.items()}
    scale = np.abs(answers['float']).max()
    for label, limit in dict(float=1e-6, static=0.05, w8a8=0.05).items():
        assert np.abs(answers[label] - answers['float']).max() <= limit * scale, label
    assert answers['w8a8'].shape == (1, 10) and not np.array_equal(answers['w8a8'], answers['static'])


def test_the_static_file_is_uint8_by_int8_with_scales_of_channels(files):
    model = onnx.load(files['static'])
    constants = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    weights = [x for x in constants.values() if x.dtype == np.int8 and x.ndim > 1]
    zeros = {constants[n.input[2]].dtype for n in model.graph.node if n.op_type == 'QuantizeLinear'}
    assert len(weights) == 4 and zeros == {np.dtype('uint8')}
    scales = [constants[n.input[1]] for n in model.graph.node if n.op_type == 'DequantizeLinear'
              and n.input[0] in constants and constants[n.input[0]].ndim == 4]
    assert [x.size for x in scales] == [64, 64, 64]


def test_both_run_by_the_same_kernels(files):
    """Also the pool: the float file has it in a form that has an integer kernel."""
    ops = {label: RuntimeSession(files[label]).optimized_ops() for label in ('static', 'w8a8', 'w2a4')}
    for label, found in ops.items():
        kernels = (found['QLinearConv'], found['QLinearAdd'], found['QLinearGlobalAveragePool'], found['QGemm'])
        assert kernels == (3, 1, 1, 1), label
        assert not found['Conv'] + found['ReduceMean'] + found['Cast']


def test_low_bits_are_packed(files):
    kinds = {label: {x.data_type for x in onnx.load(files[label]).graph.initializer} for label in files}
    assert {TensorProto.INT2, TensorProto.UINT2} & kinds['w2a4']
    sizes = {label: path.stat().st_size for label, path in files.items()}
    assert sizes['w2a4'] < 0.6 * sizes['w8a8'] < 0.3 * sizes['float']


def test_table(files, images, monkeypatch):
    monkeypatch.setattr(benchmark_deploy, 'contestants', lambda f: {k: (v, 'onnxruntime') for k, v in f.items()})
    columns, rows = benchmark_deploy.table(files, images, arguments('--threads', '1', '2', '--rounds', '3'), True)
    assert columns[1:5] == ['MB', 'integer MACs, %', 'ms, 1 thread', 'median'] and columns[8] == 'ms, 2 threads'
    assert [row[0] for row in rows] == ['float', 'static', 'w8a8', 'w2a4']
    shares = {row[0]: row[2] for row in rows}
    assert shares == dict(float=0, static=100, w8a8=100, w2a4=100)
    for row in rows:
        assert len(row) == len(columns) and row[1] == files[row[0]].stat().st_size / 1e6
        for at in (3, 8):
            clock, middle, ratio, cpu, cpu_ratio = row[at:at + 5]
            assert 0 < clock <= middle and cpu > 0
            assert ratio == pytest.approx(clock / rows[1][at]) and cpu_ratio == pytest.approx(cpu / rows[1][at + 3])


class Watched:
    """A session that notes when it runs and takes its time."""

    def __init__(self, label, seconds, calls):
        self.label, self.seconds, self.calls = label, seconds, calls

    def run(self, inputs):
        self.calls.append(self.label)
        time.sleep(self.seconds)


def test_sessions_take_turns_and_warm_up_each_time():
    calls = []
    sessions = {label: Watched(label, seconds, calls) for label, seconds in dict(a=0.001, b=0.02).items()}
    times = benchmark_deploy.take_turns(sessions, {}, 4)
    assert [len(x) for x in times.values()] == [4, 4] and len(calls) == 16
    for i in range(0, 16, 4):  # each round: every session twice in a row
        assert calls[i] == calls[i + 1] != calls[i + 2] == calls[i + 3]
    assert len({tuple(calls[i:i + 4]) for i in range(0, 16, 4)}) == 2  # in changing order
    clock, cpu = times['b'][0]
    assert 20 <= clock and cpu < 10 and min(times['b'])[0] > min(times['a'])[0]


def test_without_openvino_the_row_is_left_out(files, monkeypatch, capsys):
    def missing(name):
        raise ImportError(f'{name} is not installed')

    monkeypatch.setattr(benchmark_deploy, 'need', missing)
    assert list(benchmark_deploy.contestants(files)) == list(files)
    assert 'OpenVINO is left out: openvino is not installed' in capsys.readouterr().err


def test_what_the_executor_cannot_read_has_no_share(tmp_path, capsys):
    (tmp_path / 'cut.onnx').write_bytes(b'nothing')
    assert benchmark_deploy.integer_share(tmp_path / 'cut.onnx', {}) is None
    assert 'cut.onnx' in capsys.readouterr().err


def test_batch_norm_knows_the_images(images):
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), images)
    features = model[0](images).detach()
    assert torch.allclose(model[1].running_mean, features.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(model[1].running_var, features.var((0, 2, 3)), atol=1e-6)
    assert not model.training


def test_defaults():
    args = arguments()
    assert args.model == ('resnet18_8xb32_in1k', 'mobilenet-v2_8xb32_in1k') and args.threads == [1, 2]
    assert list(OURS) == ['w8a8', 'w4a4', 'w2a4']
    assert args.sums == ['exact', 'fast'] and args.size == 224
