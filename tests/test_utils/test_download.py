"""Weights from a server that may be wrong, slow or broken."""
import hashlib
import http.server
import io
import socket
import threading

import pytest
import torch
from models_for_tests import MLP

from mmquant.models.checkpoint import load_float_weights
from mmquant.utils import download
from mmquant.utils.download import PROMISE, fetch
from mmquant.utils.tensor_files import CheckpointError

FILES = {}  # path -> (content, bytes that are sent)
ASKED = []


class Handler(http.server.BaseHTTPRequestHandler):

    def do_GET(self):  # noqa: N802
        ASKED.append(self.path)
        data, sent = FILES[self.path]
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data[:sent])

    def log_message(self, *args):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def weights(seed: int) -> bytes:
    torch.manual_seed(seed)
    buffer = io.BytesIO()
    torch.save(MLP().state_dict(), buffer)
    return buffer.getvalue()


def test_one_file_name_at_two_addresses(address):
    FILES.update({'/a/best.pth': (weights(1), None), '/b/best.pth': (weights(2), None)})
    ASKED.clear()
    models = {name: MLP() for name in 'ab'}
    for name, model in models.items():
        load_float_weights(model, f'{address}/{name}/best.pth')
        load_float_weights(model, f'{address}/{name}/best.pth')
    assert not torch.equal(models['a'].fc1.weight, models['b'].fc1.weight)
    torch.manual_seed(2)
    assert torch.equal(models['b'].fc1.weight, MLP().fc1.weight) and ASKED == ['/a/best.pth', '/b/best.pth']


def test_the_hash_in_a_name_is_a_promise(address, tmp_path):
    data = weights(1)
    digest = hashlib.sha256(data).hexdigest()
    for name, fits in ((f'r-{digest[:8]}.pth', True), ('r-00000000.pth', False), ('r-20211231.pth', True)):
        FILES[f'/{name}'] = data, None
        (tmp_path / name).write_bytes(data)
        for source in (f'{address}/{name}', tmp_path / name):
            if fits:
                assert fetch(source).endswith(name)
            else:
                with pytest.raises(CheckpointError, match=f'{name} is not what its name promises: its SHA-256'):
                    fetch(source)
    assert not list((tmp_path / 'hub').rglob('*00000000*.pth'))
    assert [bool(PROMISE.search(x)) for x in ('a_20220902_112414-78e30dcc.pth', 'resnet18-8xb32.pth', 'b-deadbeef.tar',
                                              'c-lsj-200e_coco.pth')] == [True, False, True, False]


def test_a_short_download_is_not_kept(address, tmp_path):
    FILES['/t.pth'] = weights(1), 999
    with pytest.raises(CheckpointError, match=r't\.pth cannot be downloaded \(999 of \d+ bytes arrived\)'):
        fetch(f'{address}/t.pth')
    assert [p for p in (tmp_path / 'hub').rglob('*') if p.is_file()] == []
    FILES['/t.pth'] = weights(1), None
    load_float_weights(MLP(), f'{address}/t.pth')
    FILES['/page.pth'] = b'<html>not found</html>', None  # is no checkpoint: not to be found in the cache again
    with pytest.raises(CheckpointError, match='cannot be read'):
        load_float_weights(MLP(), f'{address}/page.pth')
    FILES['/page.pth'] = weights(1), None
    load_float_weights(MLP(), f'{address}/page.pth')


def test_a_server_that_never_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(download, 'TIMEOUT', 0.5)
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen()
        with pytest.raises(CheckpointError, match='cannot be downloaded .*timed out'):
            fetch(f'http://127.0.0.1:{silent.getsockname()[1]}/w.pth')
