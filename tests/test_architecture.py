"""The plan of the house: which part may import which, how long files are, types found by their prefix."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'mmquant'
FILES = sorted(PACKAGE.rglob('*.py'))
# A part may import what stands further up, and itself. Parts of one line do not know each other but for ALSO.
FLOORS = [('structures', 'ops'), ('observers', 'quantizers', 'roundings'), ('models',), ('calibration',), ('losses',),
          ('reconstruction', 'solvers', 'search'), ('algorithms',),
          ('engine', 'analysis', 'visualization', 'export'), ('apis',)]
LEVEL = {part: level for level, floor in enumerate(FLOORS) for part in floor}
# Parts beside the stack: what they may import of ours.
BESIDE = dict(utils={'utils'}, datasets={'datasets'}, architectures={'architectures'})
ANYWHERE = {'registry', 'utils', 'version'}
ALSO = {('ops', 'structures'), ('engine', 'analysis'), ('engine', 'datasets'), ('apis', 'datasets'),
        ('visualization', 'analysis'), ('engine', 'visualization')}


def imports(path: Path, toplevel_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports, also inside functions."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    package = path.relative_to(PACKAGE.parent).with_suffix('').parts[:-1]
    found = set()
    for node in tree.body if toplevel_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            name = '.'.join(p for p in (base, node.module) if p)
            found.add(name)
            if name == 'mmquant' or not node.module:
                found |= {f'{name}.{alias.name}' for alias in node.names}
    return found


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def ours(path: Path) -> set[str]:
    """Parts of mmquant that a file imports."""
    return {name.split('.')[1] for name in imports(path) if name.startswith('mmquant.')}


def test_the_tree_is_known():
    """Every part of the package has its place in the order above."""
    parts = {p.name for p in PACKAGE.iterdir() if p.is_dir() and list(p.glob('*.py'))}
    assert parts <= set(LEVEL) | set(BESIDE), parts - set(LEVEL) - set(BESIDE)
    assert {'structures', 'ops', 'quantizers', 'models', 'calibration', 'algorithms', 'engine', 'apis'} <= parts
    assert len(FILES) > 50


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if part in ('__init__', 'registry', 'version'):
        assert ours(path) <= {'utils', 'version', 'apis'} and (part == '__init__' or not ours(path))
        return
    for other in ours(path) - ANYWHERE:
        if part in BESIDE:
            assert other in BESIDE[part], f'{path} must not import mmquant.{other}'
        else:
            below = LEVEL.get(other, -1) < LEVEL[part] and other not in BESIDE
            assert below or other == part or (part, other) in ALSO, f'{path} must not import mmquant.{other}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path):
    assert len(path.read_text(encoding='utf-8').splitlines()) <= 450


def test_files_are_short_in_the_median():
    lengths = sorted(len(p.read_text(encoding='utf-8').splitlines()) for p in FILES)
    assert lengths[len(lengths) // 2] <= 110


@pytest.mark.parametrize('part', [*FLOORS[0], *FLOORS[1]])
def test_first_floors_know_torch_only(part):
    """They serve without mmcv, mmengine (but for the registry) and mmpretrain."""
    allowed = {'torch', 'triton', 'mmquant', *sys.stdlib_module_names}  # triton comes with CUDA builds of torch
    for path in (PACKAGE / part).glob('*.py'):
        names = {name.split('.')[0] for name in imports(path)}
        assert names <= allowed, f'{path}: {names - allowed}'
    assert {name for name in imports(PACKAGE / 'registry.py')} == {'mmengine.registry'}


def test_first_floors_load_nothing_heavy():
    code = ('import sys, mmquant.quantizers, mmquant.roundings, mmquant.observers\n'
            'print(sorted(m for m in ("mmcv", "mmpretrain", "mmdet", "mmengine.runner", "mmquant.models") '
            'if m in sys.modules))')
    done = subprocess.run([sys.executable, '-c', code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr


def test_importing_mmquant_is_light():
    code = 'import sys, mmquant; print(sorted(m for m in ("torch", "mmengine", "mmcv") if m in sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr


def registered_names() -> dict[str, set[str]]:
    """Classes decorated with ``register_module`` in the source: registry -> names."""
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            for decorator in getattr(node, 'decorator_list', ()) if isinstance(node, ast.ClassDef) else ():
                if isinstance(decorator, ast.Call) and getattr(decorator.func, 'attr', '') == 'register_module':
                    found.setdefault(decorator.func.value.id, set()).add(node.name)
    return found


def test_every_type_is_found_by_its_prefix_in_a_fresh_process():
    """Without ``import mmquant``: mmengine imports ``mmquant.registry`` by the scope, and that is enough."""
    names = registered_names()
    inherited = {'LOOPS', 'HOOKS', 'MODELS', 'DATASETS', 'TRANSFORMS'}
    assert {'QUANTIZERS', 'ROUNDINGS', 'OBSERVERS', 'STEPS', 'TERMS', 'FIT_HOOKS'} | inherited <= set(names)
    shared = {k: sorted(v) for k, v in names.items() if k in inherited}
    code = f'''
import sys
import mmengine.registry as roots
assert "mmquant" not in sys.modules
missing = [(k, n) for k, names in {shared!r}.items() for n in names if getattr(roots, k).get("mmquant." + n) is None]
assert "mmquant" in sys.modules
import mmquant.registry as own
missing += [(k, n) for k, names in {names!r}.items() for n in names if getattr(own, k).get("mmquant." + n) is None]
print(missing)'''
    done = subprocess.run([sys.executable, '-c', code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1:] == ['[]'], done.stdout + done.stderr[-2000:]


def test_no_print_and_no_mutable_defaults():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            assert not (isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'print'), path
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                defaults = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
                assert not any(isinstance(d, (ast.List, ast.Dict, ast.Set)) for d in defaults), (path, node.lineno)


def test_public_classes_and_functions_are_documented():
    for path in FILES:
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith('_'):
                assert ast.get_docstring(node), f'{path}: {node.name} has no docstring'
