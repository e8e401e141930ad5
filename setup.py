"""Packaging of mmquant; the extras come from requirements/*.txt."""
import os
import os.path as osp
import re
import shutil
import sys

from setuptools import find_packages, setup

ROOT = osp.dirname(osp.abspath(__file__))


def read(name):
    """The text of a file of the repository; empty if it is not there."""
    path = osp.join(ROOT, name)
    if not osp.exists(path):
        return ''
    with open(path, encoding='utf-8') as file:
        return file.read()


def requirements(name):
    """The requirement lines of ``requirements/<name>.txt``, without comments."""
    lines = (line.strip() for line in read(f'requirements/{name}.txt').splitlines())
    return [line for line in lines if line and not line.startswith('#')]


def add_mim_files():
    """Put tools, configs and the model index into ``mmquant/.mim``, where mim and :func:`mmquant.quantize` look.

    An editable install gets symbolic links and follows the working tree; a built distribution gets copies.
    """
    if {'develop', 'editable_wheel'} & set(sys.argv):
        link = True
    elif {'sdist', 'bdist_wheel'} & set(sys.argv):
        link = False
    else:
        return
    mim = osp.join(ROOT, 'mmquant', '.mim')
    os.makedirs(mim, exist_ok=True)
    for name in ('tools', 'configs', 'model-index.yml'):
        source, target = osp.join(ROOT, name), osp.join(mim, name)
        if not osp.exists(source):  # a build from an sdist finds the copies already in place
            continue
        if osp.islink(target) or osp.isfile(target):
            os.remove(target)
        elif osp.isdir(target):
            shutil.rmtree(target)
        if link:
            os.symlink(osp.relpath(source, mim), target)
        elif osp.isdir(source):
            shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copyfile(source, target)


if __name__ == '__main__':
    add_mim_files()
    extras = {name: requirements(name) for name in ('mminstall', 'optional', 'export', 'tests', 'docs')}
    setup(
        name='mmquant',
        version=re.search(r"__version__ = '(.+)'", read('mmquant/version.py')).group(1),
        description='Post-training quantization toolbox for OpenMMLab models',
        long_description=read('README.md'),
        long_description_content_type='text/markdown',
        author='mmquant authors',
        license='Apache-2.0',
        keywords=['post-training quantization', 'model compression', 'computer vision', 'OpenMMLab'],
        packages=find_packages(include=['mmquant', 'mmquant.*']),
        include_package_data=True,
        python_requires='>=3.10',
        install_requires=requirements('runtime'),
        extras_require=extras,
        classifiers=[
            'Development Status :: 3 - Alpha',
            'Operating System :: POSIX :: Linux',
            'Programming Language :: Python :: 3',
            'Programming Language :: Python :: 3.10',
            'Programming Language :: Python :: 3.11',
            'Programming Language :: Python :: 3.12',
        ],
        zip_safe=False,
    )
