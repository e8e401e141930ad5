"""Versions are read without importing, from originals and forks alike, and errors say what to do."""
import sys
import types
import warnings

import pytest

from mmquant.utils.versions import PACKAGES, PackageRange, check_package, check_versions, installed_version


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder on the import path, and a function that puts a package with metadata there."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(module, version_file='', distribution=None, version=None):
        (tmp_path / module).mkdir(exist_ok=True)
        (tmp_path / module / '__init__.py').write_text('raise RuntimeError("imported")\n')
        if version_file:
            (tmp_path / module / 'version.py').write_text(version_file)
        if distribution:
            folder = tmp_path / f'{distribution.replace("-", "_")}-{version}.dist-info'
            folder.mkdir()
            (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n')

    return add


def package(if_missing='raise'):
    return PackageRange('fakecv', '1.5.0', '3.0.0', '2.0.0', ('onedl-fakecv', 'fakecv'), if_missing, 'seeing')


def test_version_of_an_original_comes_from_its_version_file(site):
    site('fakecv', "# c\n__version__ = '2.2.0'\n")
    assert installed_version('fakecv') == '2.2.0'


def test_version_of_a_fork_comes_from_its_metadata(site):
    site('fakecv', "from importlib.metadata import version\n__version__ = version('onedl-fakecv')\n", 'onedl-fakecv',
         '2.3.6')
    assert installed_version('fakecv', ('onedl-fakecv', 'fakecv')) == '2.3.6'


def test_version_of_an_imported_package_is_what_it_says(monkeypatch):
    monkeypatch.setitem(sys.modules, 'fakecv', types.SimpleNamespace(__version__='9.9'))
    assert installed_version('fakecv') == '9.9'


def test_missing_package_and_missing_version(site):
    assert installed_version('fakecv') is None
    site('fakecv')
    assert installed_version('fakecv') == ''
    check_package(package())


@pytest.mark.parametrize('version', ['1.5.0', '2.13.0+cpu', '2.99.0'])
def test_versions_inside_the_range_pass_in_silence(site, version):
    site('fakecv', f"__version__ = '{version}'\n")
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_package(package())


def test_older_version_raises_and_names_both_versions(site):
    site('fakecv', "__version__ = '1.4.9'\n")
    with pytest.raises(ImportError, match=r"fakecv>=1\.5\.0, but found 1\.4\.9.*pip install 'onedl-fakecv==2\.0\.0'"):
        check_package(package())


def test_newer_version_only_warns(site):
    site('fakecv', "__version__ = '3.0.0'\n")
    with pytest.warns(UserWarning, match=r'fakecv 3\.0\.0 is newer .*tested with 2\.0\.0, expected <3\.0\.0'):
        check_package(package())


def test_what_a_missing_package_does_depends_on_the_package():
    with pytest.raises(ImportError, match='fakecv is not installed; it is needed for seeing'):
        check_package(package('raise'))
    with pytest.warns(UserWarning, match='fakecv is not installed'):
        check_package(package('warn'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_package(package('ignore'))


def test_original_and_fork_together_are_reported(site):
    site('fakecv', '', 'onedl-fakecv', '2.3.6')
    site('fakecv', '', 'fakecv', '2.2.0')
    with pytest.warns(UserWarning, match=r'onedl-fakecv 2\.3\.6 and fakecv 2\.2\.0 are installed together'
                      r".*pip uninstall onedl-fakecv fakecv; pip install 'onedl-fakecv==2\.0\.0'"):
        check_package(package())


def test_advice_never_leads_to_original_and_fork_together(site):
    site('fakecv', '', 'fakecv', '1.4.9')
    with pytest.raises(ImportError, match="pip uninstall fakecv; pip install 'onedl-fakecv"):
        check_package(package())


def test_the_installed_stack_passes():
    check_versions()
    assert [p.module for p in PACKAGES] == ['torch', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'transformers']
