"""Bases by ``mmquant::``: mmengine knows such prefixes of its own packages only, so they become paths first."""
import ast
import os.path as osp
import re
import tempfile
from glob import glob

from mmengine.config import Config

from mmquant.apis.quantize import config_root
from mmquant.utils.building import ConfigError, closest

PREFIX = 'mmquant::'


def read_config(path: str) -> Config:
    """``Config.fromfile``, where ``_base_`` may name shipped configs: ``'mmquant::brecq/resnet18_w2a4_digits.py'``.

    The prefix stands for the folder of the shipped configs and sets no scope, unlike those of mmengine's packages.
    """
    with tempfile.TemporaryDirectory() as folder:
        copies = {}
        read = _with_paths(osp.abspath(path), folder, copies)
        if not copies:
            return Config.fromfile(path)
        cfg = Config.fromfile(read)
        text = cfg.text
        for copy, original in copies.items():
            text = text.replace(copy, original)
        object.__setattr__(cfg, '_filename', path)
        object.__setattr__(cfg, '_text', text)
        return cfg


def _with_paths(path: str, folder: str, copies: dict[str, str]) -> str:
    """A config, or a copy of it in ``folder`` if it or one of its bases names shipped configs; fills copy -> config."""
    if not osp.isfile(path) or not path.endswith('.py'):
        return path  # mmengine tells
    with open(path, encoding='utf-8') as stream:
        text = stream.read()
    node = next((n for n in ast.parse(text, path).body if isinstance(n, ast.Assign)
                 and getattr(n.targets[0], 'id', None) == '_base_'), None)
    if node is None:
        return path
    given = ast.literal_eval(node.value)
    bases = [given] if isinstance(given, str) else given
    local = [b if '::' in b and not b.startswith(PREFIX) else _path_of(b, path) for b in bases]
    found = [b if '::' in b else _with_paths(b, folder, copies) for b in local]
    if found == local and not any(b.startswith(PREFIX) for b in bases):
        return path
    lines = text.splitlines()
    lines[node.lineno - 1:node.end_lineno] = [f'_base_ = {found!r}', *[''] * (node.end_lineno - node.lineno)]
    directory = osp.dirname(path).replace('\\', '/')
    text = re.sub(r'\{\{\s*fileDirname\s*\}\}', lambda _: directory, '\n'.join(lines) + '\n')
    copy = osp.join(tempfile.mkdtemp(dir=folder), osp.basename(path))  # the name is one of mmengine's variables
    with open(copy, 'w', encoding='utf-8') as stream:
        stream.write(text)
    copies[copy] = path
    return copy


def _path_of(base: str, path: str) -> str:
    if not base.startswith(PREFIX):
        return osp.normpath(osp.join(osp.dirname(path), base))
    found = osp.join(config_root(), base.removeprefix(PREFIX))
    if not osp.isfile(found):
        root = config_root()
        known = [PREFIX + osp.relpath(p, root) for p in glob(osp.join(root, '**', '*.py'), recursive=True)]
        raise ConfigError(f'{path}: there is no config {base!r}; {closest(base, known)}')
    return found
