"""Packaging. Configs and tools travel inside the package as ``.mim``, where ``mim`` looks for them."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_FILES = ('tools', 'configs', 'model-index.yml')


class BuildWithMim(build_py):
    """Adds ``.mim``: copies in a wheel, links to the checkout in an editable install."""

    def run(self):
        if not self.editable_mode:  # files of an earlier build must not get into this one
            shutil.rmtree(Path(self.build_lib, 'mmdiffrep'), ignore_errors=True)
        super().run()
        if self.editable_mode:
            self._link_mim(ROOT / 'mmdiffrep' / '.mim')
        else:
            self._copy_mim(Path(self.build_lib, 'mmdiffrep', '.mim'))

    @staticmethod
    def _link_mim(mim):
        mim.mkdir(exist_ok=True)
        for name in MIM_FILES:
            (mim / name).unlink(missing_ok=True)
            os.symlink(os.path.join('..', '..', name), mim / name)

    @staticmethod
    def _copy_mim(mim):
        mim.mkdir(parents=True)
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc', '.*')
        for name in MIM_FILES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, mim / name, ignore=ignore)
            else:
                shutil.copy2(source, mim / name)


def version():
    text = (ROOT / 'mmdiffrep' / 'version.py').read_text()
    return re.search(r"__version__ = '(.+)'", text)[1]


def long_description():
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


# mmcv is in no extra: mmcv-lite would overwrite an mmcv that has its compiled ops. 'lite' is asked for by name.
EXTRAS = {
    'lite': ['mmcv-lite>=2.0.0,<2.2'],
    'mmseg': ['mmsegmentation>=1.2', 'ftfy', 'regex'],
    'mmdet': ['mmdet>=3.2', 'pycocotools'],
    'openvocab': ['open_clip_torch>=2.24', 'transformers>=4.40'],
    'phrases': ['spacy>=3.5'],  # and its model: python -m spacy download en_core_web_sm
    'page': ['gradio>=5'],  # tools/match_page.py
    'probes': ['scikit-learn>=1.2'],
    'quant': ['torchao>=0.10'],  # DiffusionBackbone(quantise='int8')
    'tests': ['pytest>=7', 'scikit-learn>=1.2', 'scikit-image>=0.20', 'pytest-xdist>=3', 'hypothesis>=6'],
    'dev': ['ruff>=0.5', 'mypy>=1.8', 'pre-commit', 'pytest-cov'],
}
EXTRAS['all'] = [r for extra in ('mmseg', 'mmdet', 'openvocab') for r in EXTRAS[extra]]

setup(
    name='mmdiffrep',
    version=version(),
    description='Pre-trained diffusion networks as ordinary OpenMMLab components',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10',
    packages=find_packages(include=['mmdiffrep', 'mmdiffrep.*']),
    package_data={'mmdiffrep': ['data/**/*']},
    include_package_data=False,
    cmdclass={'build_py': BuildWithMim},
    install_requires=[
        'torch>=2.4',
        'torchvision>=0.19',
        'mmengine>=0.10.4',
        'diffusers>=0.30',
        'safetensors>=0.4',
        'huggingface_hub>=0.23',
        'numpy>=1.24',
        'opencv-python>=4.6',
        'pillow>=9',
        'matplotlib>=3.6',
        'setuptools<82',  # mmengine 0.10.7 reads `mmseg::` configs through pkg_resources
    ],
    extras_require=EXTRAS,
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
