"""Every method has its page, found by its name, with the paper; one of a recipe tells what each step is for."""
import ast
import re
from pathlib import Path

import pytest

from mmquant.algorithms.step_list import build_steps
from mmquant.apis.quantize import recipe_steps

ROOT = Path(__file__).parents[2]
RECIPES = sorted(p.stem for p in (ROOT / 'configs/_base_/algorithms').glob('*.py'))
METHODS = sorted(p.parent.name for p in (ROOT / 'configs').glob('*/README.md'))


def page_of(method):
    """Docstring of the recipe's page, else of the module of that name: a method may be one grid or one solver."""
    found = sorted((ROOT / 'mmquant').rglob(f'{method}.py'), key=lambda p: p.parent.name != 'recipes')
    assert found, f'write mmquant/algorithms/recipes/{method}.py'
    return ast.get_docstring(ast.parse(found[0].read_text())), found[0].parent.name == 'recipes'


@pytest.mark.parametrize('method', METHODS)
def test_page(method):
    page, of_recipe = page_of(method)
    paper = re.search(r'arxiv\.org/abs/([\d.]+\d)', (ROOT / f'configs/{method}/README.md').read_text())[1]
    assert paper in page
    if not of_recipe:
        return
    explained = set(re.findall(r'``(\w+)``', page))
    assert set(recipe_steps(method)) <= explained
    assert {name for name in RECIPES if name.startswith(f'{method}_')} <= explained


@pytest.mark.parametrize('recipe', RECIPES)
def test_recipe_builds(recipe):
    steps = recipe_steps(recipe)
    assert [step.name for step in build_steps(steps)] == list(steps)
    assert recipe.split('_')[0] in METHODS  # no recipe without configs
