"""Calibration images from elsewhere than a data loader."""
import pytest
import torch
from tools_for_tests import CONFIG, STEPS, log_of, quantized_of, results_of, run_tool, runner_of

from mmquant.engine import CalibrationLoop, LoaderImages, Source
from mmquant.engine.sources.source import chunks_of_one_size
from mmquant.registry import SOURCES

SEEN = []


@SOURCES.register_module(force=True)
class Noise(Source):
    """Made-up images, as a generator would distil them from the float model."""

    def __init__(self, count: int = 12, value: float = 1.0, shared: int = 0, labels: bool = False) -> None:
        self.count, self.value, self.shared, self.labels = count, value, shared, labels

    def batches(self, model, seed):
        SEEN.append((seed, model.plan, [p.device for p in model.parameters()][0]))
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, self.count, 5):
            images = torch.randn(min(5, self.count - start), 3, 32, 32, generator=generator) * self.value
            yield dict(inputs=images, data_samples=[f'{start}'] * len(images)) if self.labels else dict(inputs=images)

    def overlap(self, dataset):
        return self.shared


def config_with(folder, source: str, more: str = '') -> str:
    path = folder / 'resnet18_w2a4_digits.py'
    path.write_text(f"_base_ = {CONFIG!r}\ntrain_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop', "
                    f'steps={STEPS!r}, source={source}{more})\n'
                    'val_dataloader = dict(dataset=dict(indices=20))\n'
                    'test_dataloader = dict(dataset=dict(indices=20))\n')
    return str(path)


def test_the_whole_command_line_without_a_dataloader(tmp_path):
    SEEN.clear()
    path = config_with(tmp_path, "dict(type='mmquant.Noise')")
    run_tool('ptq.py', path, '--work-dir', tmp_path / 'run', '--seed', 7)
    assert SEEN == [(7, None, torch.device('cpu'))]  # once, from the model as it was loaded
    meta = quantized_of(tmp_path / 'run')['meta']
    assert meta['calibration'] == dict(images=12, list_sha256=None, dataset=None)
    stages = [s['name'] for s in results_of(tmp_path / 'run')['stages']]
    assert stages == ['float', 'nearest_weights', 'nearest', 'final']
    assert (tmp_path / 'run/report.html').exists() and 'EVALUATION images' not in log_of(tmp_path / 'run')
    run_tool('test.py', path, tmp_path / 'run/quantized.pth')
    run_tool('ptq.py', path, '--work-dir', tmp_path / 'again', '--seed', 7, '--resume', tmp_path / 'run/progress.pth')
    assert len(SEEN) == 2
    other = config_with(tmp_path, "dict(type='mmquant.Noise', value=2.0)")
    with pytest.raises(SystemExit, match='it was made with other calibration images'):
        run_tool('ptq.py', other, '--work-dir', tmp_path / 'other', '--seed', 7, '--resume',
                 tmp_path / 'run/progress.pth')


def test_a_source_knows_what_it_shares_with_the_evaluation_images(tmp_path):
    path = config_with(tmp_path, "dict(type='mmquant.Noise', shared=3)")
    run_tool('ptq.py', path, '--work-dir', tmp_path / 'run', '--no-report')
    assert '3 of the calibration images are also EVALUATION images' in log_of(tmp_path / 'run')


def test_collected():
    model = torch.nn.Linear(1, 1)
    model.plan = None
    chunks, samples = Noise(labels=True).collect(model, 0, 7)
    assert [len(c) for c in chunks] == [7, 5] and samples == [['0'] * 5 + ['5'] * 2, ['5'] * 3 + ['10'] * 2]
    assert torch.equal(torch.cat(chunks), torch.cat([b['inputs'] for b in Noise().batches(model, 0)]))
    assert Noise().collect(model, 0, 7)[1] is None
    with pytest.raises(ValueError, match='calibration batch 0 holds NaN or infinite pixels'):
        Noise(value=float('inf')).collect(model, 0, 7)
    with pytest.raises(ValueError, match='the calibration set is empty'):
        Noise(count=0).collect(model, 0, 7)


def test_chunks_of_one_size():
    batches = [dict(inputs=torch.full((1, 3, h, 4), float(i)), data_samples=[i]) for i, h in enumerate((4, 6, 4, 4))]
    chunks, samples = chunks_of_one_size(batches, 2)
    assert [c[:, 0, 0, 0].tolist() for c in chunks] == [[0, 2], [3], [1]] and samples == [[0, 2], [3], [1]]
    del batches[1]['data_samples']
    assert chunks_of_one_size(batches, 2)[1] is None
    rows, _ = chunks_of_one_size([dict(inputs=torch.arange(6.).reshape(3, 2))] * 2, 4)
    assert [len(r) for r in rows] == [4, 2] and chunks_of_one_size([], 4)[0] == []


def test_a_dataloader_is_short_for_a_source(tmp_path):
    runner = runner_of(tmp_path)
    loader = runner.cfg.train_dataloader
    short = CalibrationLoop(runner, loader, STEPS)
    long = CalibrationLoop(runner, {}, STEPS, source=dict(type='mmquant.LoaderImages', dataloader=loader))
    assert isinstance(short.source, LoaderImages) and SOURCES.get('mmquant.LoaderImages') is LoaderImages
    assert short.source.facts() == long.source.facts() and len(short.source.facts()['list_sha256']) == 64
    a, b = (loop.collect(runner.model)[0] for loop in (short, long))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert short.source.overlap(short.source.dataset) == len({x.tobytes() for x in torch.cat(a).numpy()}) == 24


@pytest.mark.parametrize('source, more, text', [
    ("dict(type='mmquant.Noize')", '', "train_cfg.source: unknown type 'mmquant.Noize'; did you mean 'mmquant.Noise'"),
    ("dict(type='mmquant.Noise', cuont=1)", '',
     r"train_cfg.source \(Noise\): unknown key 'cuont'; did you mean 'count'"),
    ("dict(type='mmquant.Noise')", ', unreadable="skip"', 'train_cfg.source takes the place of train_cfg.dataloader'),
    ("dict(type='mmquant.Noise')", ', dataloader=dict(dataset=dict(type="X"))', 'train_cfg.source takes the place of'),
    ('None', '', 'train_cfg.dataloader is missing; set it to the calibration_dataloader of a file in .*, or '
                 'train_cfg.source'),
])
def test_wrong_sources(tmp_path, source, more, text):
    with pytest.raises(SystemExit, match=text):
        run_tool('ptq.py', config_with(tmp_path, source, more), '--work-dir', tmp_path / 'run')
