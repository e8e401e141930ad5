"""What the page "Deploy" shows: its program runs with nothing but three packages, its config quantizes and exports."""
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tools_for_tests import ROOT, TINY, results_of, run_tool

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from mmquant.apis.config import build_runner, load_config  # noqa: E402
from mmquant.export.runtime import RuntimeSession  # noqa: E402

CONFIG = ROOT / 'configs/nearest/resnet18_w4a8_digits.py'
PAGE = (ROOT / 'docs/en/how_to/deploy.md').read_text()
IMAGES = 60
# Put in front of the program: `python -I` ignores PYTHONPATH and the folder, this refuses what is installed.
GUARD = '''import sys
class Guard:
    def find_spec(self, name, *_):
        if name.split('.')[0] in {'torch', 'torchvision', 'mmquant', 'mmengine', 'mmcv', 'mmpretrain', 'onnx', 'cv2'}:
            raise ImportError(f'the program must not need {name}')
sys.meta_path.insert(0, Guard())
'''


def block(beginning: str) -> str:
    return next(b for b in re.findall(r'```python\n(.*?)```', PAGE, re.S) if b.startswith(beginning))


@pytest.fixture(scope='module')
def program():
    return block('import json')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A work dir of the tools, with packed files."""
    folder = tmp_path_factory.mktemp('deploy') / 'run'
    options = ['--cfg-options', *(x for x in TINY if 'steps' not in x)]
    run_tool('ptq.py', CONFIG, '--work-dir', folder, '--no-report', *options)
    run_tool('export.py', CONFIG, folder / 'quantized.pth', '--work-dir', folder, '--packed', *options)
    return folder


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Files of test images, as scikit-learn has them and as the pipeline of the config makes them."""
    from mmpretrain.datasets import Resize

    from mmquant.datasets import DigitsDataset
    folder, data = tmp_path_factory.mktemp('pictures'), DigitsDataset('test')
    small, whole = [], []
    for i in range(IMAGES):
        image = data.get_data_info(i)['img']
        small.append(folder / f'small_{i}.png')
        whole.append(folder / f'whole_{i}.png')
        Image.fromarray(image).save(small[-1])
        Image.fromarray(Resize(scale=32)(dict(img=image))['img']).save(whole[-1])
    return small, whole


def classes(program: str, folder, file, names) -> list[int]:
    """What the program prints, in a process that imports none of ours."""
    script = folder / 'classify.py'
    script.write_text(GUARD + program)
    done = subprocess.run([sys.executable, '-I', script, folder / 'model.json', file, *names], capture_output=True,
                          text=True, cwd=folder, env={'PATH': os.environ['PATH'], 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    printed = dict(line.rsplit(' ', 1) for line in done.stdout.splitlines())
    about = json.loads((folder / 'model.json').read_text())
    return [about['classes'].index(c) if about['classes'] else int(c) for c in (printed[str(n)] for n in names)]


def simulated(folder, names) -> list[int]:
    """Classes of the same images in PyTorch, by the model that was exported."""
    cfg = load_config(str(CONFIG))
    cfg.work_dir, cfg.experiment_name = str(folder / 'simulated'), 'deploy_page'
    model = build_runner(cfg).model
    model.load(str(folder / 'deployed.pth'))
    inputs = [torch.from_numpy(np.array(Image.open(n))[..., ::-1].copy()).permute(2, 0, 1) for n in names]
    data = model.data_preprocessor(dict(inputs=inputs), False)
    with torch.no_grad(), model.frozen(*model.ready):
        return model(data['inputs'], mode='tensor').argmax(1).tolist()


def test_the_program_needs_three_packages_and_15_lines(program):
    assert len(program.strip().splitlines()) == 15
    found = set(re.findall(r'^(?:import|from) (\w+)', program, re.M))
    assert found == {'json', 'numpy', 'onnxruntime', 'PIL'}


@pytest.mark.parametrize('name', ['model.onnx', 'model_packed.onnx'])
def test_the_program_gives_the_classes_of_the_simulation(program, run, pictures, name):
    small, whole = pictures
    expected = simulated(run, whole)
    assert classes(program, run, run / name, whole) == expected and len(set(expected)) == 10
    assert classes(program, run, run / name, small) == expected  # pixels are off by one at most
    labels = [int(x) for x in _labels()]
    assert np.mean(np.equal(expected, labels)) > 0.95


def _labels():
    from mmquant.datasets import DigitsDataset
    data = DigitsDataset('test')
    return [data.get_data_info(i)['gt_label'] for i in range(IMAGES)]


def test_the_config_of_the_page_exports_without_additions(tmp_path):
    path = tmp_path / 'resnet18_deploy.py'
    path.write_text(block('# my_project/resnet18_deploy.py'))
    options = ['--work-dir', tmp_path / 'run', '--cfg-options', *TINY]
    run_tool('ptq.py', path, '--no-report', *options)
    records = results_of(tmp_path / 'run')['records']
    assert next(r for r in records if r['kind'] == 'deploy_quantizers')['places'] > 5
    assert sum(r['kind'] == 'bias' for r in records) == 21
    run_tool('export.py', path, tmp_path / 'run/quantized.pth', *options)
    log = '\n'.join(p.read_text() for p in sorted((tmp_path / 'run').glob('*/*.log')))
    assert 'had zero points' not in log
    ops = RuntimeSession(tmp_path / 'run/model.onnx').optimized_ops()
    assert ops['QLinearConv'] == 20 and ops['QGemm'] == 1 and not ops['Conv'] + ops['FusedConv']
