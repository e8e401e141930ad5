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


class Ranges(http.server.BaseHTTPRequestHandler):
    """A server that gives parts: content, its version, bytes that are sent at most, further headers."""
    content, version, sent, more = b'', 'x', None, {}
    asked = []

    def do_GET(self):  # noqa: N802
        begin = 0
        if 'Range' in self.headers and self.headers['If-Range'] == f'"{self.version}"':
            begin = int(self.headers['Range'].removeprefix('bytes=').removesuffix('-'))
        self.asked.append((self.headers.get('Range'), self.headers.get('If-Range')))
        if begin >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        rest = self.content[begin:]
        for key, value in {'Content-Length': len(rest), 'Accept-Ranges': 'bytes', 'ETag': f'"{self.version}"', **({
                'Content-Range': f'bytes {begin}-{len(self.content) - 1}/{len(self.content)}'} if begin else {}),
                **self.more}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(rest[:self.sent])

    def log_message(self, *args):
        pass


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    for key, value in dict(content=weights(1), version='x', sent=999, more={}, asked=[]).items():
        monkeypatch.setattr(Ranges, key, value)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/w.pth'
    server.shutdown()


def files(tmp_path) -> dict:
    return {p.name: p.read_bytes() for p in (tmp_path / 'hub').rglob('*') if p.is_file()}


def test_a_broken_download_goes_on(parts, tmp_path):
    for arrived in (999, 1998):  # each try brings some more
        with pytest.raises(CheckpointError, match=rf'{arrived} of \d+ bytes arrived; {arrived} bytes are kept'):
            fetch(parts)
        assert files(tmp_path) == {'w.pth.part': Ranges.content[:arrived], 'w.pth.part.version': b'"x"'}
    Ranges.sent = None
    assert fetch(parts) == fetch(parts) and files(tmp_path) == {'w.pth': Ranges.content}
    assert Ranges.asked == [(None, None), ('bytes=999-', '"x"'), ('bytes=1998-', '"x"')]


@pytest.mark.parametrize('change', [dict(version='y'), dict(content=b'short'), dict(content=b'short', version='y')])
def test_another_file_is_not_added_to_a_part(parts, tmp_path, change):
    """Told by its version (the whole is sent), or by there being no such bytes."""
    with pytest.raises(CheckpointError):
        fetch(parts)
    Ranges.sent = None
    for key, value in change.items():
        setattr(Ranges, key, value)
    fetch(parts)
    assert files(tmp_path) == {'w.pth': Ranges.content} and Ranges.asked[1] == ('bytes=999-', '"x"')


@pytest.mark.parametrize('more', [{'Accept-Ranges': 'none'}, {'ETag': 'W/"x"'}, {'ETag': ''}])
def test_without_parts_nothing_is_left(parts, tmp_path, more):
    Ranges.more = more
    with pytest.raises(CheckpointError, match=r'999 of \d+ bytes arrived\)'):
        fetch(parts)
    assert files(tmp_path) == {}
    Ranges.sent = None
    fetch(parts)
    assert files(tmp_path) == {'w.pth': Ranges.content} and Ranges.asked == [(None, None)] * 2


def test_a_wrong_part_is_refused(parts, tmp_path):
    with pytest.raises(CheckpointError):
        fetch(parts)
    Ranges.sent, Ranges.more = None, {'Content-Range': 'bytes 5-9/99'}
    with pytest.raises(CheckpointError, match='the server sent bytes 5-9/99, not what follows byte 999'):
        fetch(parts)
    assert files(tmp_path) == {}


def test_a_part_of_a_killed_run_without_a_version_is_dropped(parts, tmp_path):
    with pytest.raises(CheckpointError):
        fetch(parts)
    version = next((tmp_path / 'hub').rglob('*.version'))
    version.write_text('')
    Ranges.sent = None
    fetch(parts)
    assert files(tmp_path) == {'w.pth': Ranges.content} and Ranges.asked[1] == (None, None)


def test_several_at_once_download_it_once(parts, tmp_path):
    Ranges.sent, found = None, []
    threads = [threading.Thread(target=lambda: found.append(fetch(parts))) for _ in range(5)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(found) == 5 and len(set(found)) == 1 and len(Ranges.asked) == 1
    assert files(tmp_path) == {'w.pth': Ranges.content}


def test_a_server_that_never_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(download, 'TIMEOUT', 0.5)
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen()
        with pytest.raises(CheckpointError, match='cannot be downloaded .*timed out'):
            fetch(f'http://127.0.0.1:{silent.getsockname()[1]}/w.pth')
