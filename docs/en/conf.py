"""Sphinx: MyST pages; reference, model zoo, benchmarks and pictures are made from the repository before each build."""
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT), str(ROOT / 'tools'), str(ROOT / 'tools/analysis_tools')]

from generate import generate  # noqa: E402

from mmquant import __version__  # noqa: E402

generate(HERE / '_generated')

project, author, release = 'mmquant', 'mmquant authors', __version__
extensions = ['myst_parser', 'sphinx_copybutton']
source_suffix = {'.md': 'markdown'}
exclude_patterns = ['_build']
myst_enable_extensions = ['colon_fence', 'deflist']
myst_heading_anchors = 3
html_theme = 'alabaster'
html_title = f'mmquant {release}'
html_theme_options = {
    'description': 'Post-training quantization for OpenMMLab models', 'page_width': '1180px', 'sidebar_width': '230px',
    'fixed_sidebar': True, 'font_family': 'system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif',
    'head_font_family': 'system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif', 'link': '#2b6c99',
    'show_powered_by': False}
html_static_path = ['static']
html_css_files = ['style.css']
html_show_sourcelink = False
