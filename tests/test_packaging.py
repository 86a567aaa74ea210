"""What a wheel holds, and that an editable install links its configs and tools."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mmdiffrep import __version__

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(
    '__pycache__',
    '.mim',
    '.git',
    '.venv',
    '*.egg-info',
    'build',
    'work_dirs',
    '.*_cache',
    'demo_output',
)

pytestmark = pytest.mark.skipif(
    not (ROOT / 'setup.py').is_file(), reason='the tests do not run in a checkout'
)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the checkout without what git ignores."""
    copy = tmp_path_factory.mktemp('packaging') / 'source'
    copy.mkdir()
    for item in ROOT.iterdir():
        if item.name in ('mmdiffrep', 'configs', 'tools', 'requirements'):
            shutil.copytree(item, copy / item.name, ignore=LEFT_OUT, symlinks=True)
        elif item.is_file():
            shutil.copy2(item, copy)
    return copy


def build(source, hook, out):
    """Call a PEP 517 hook in the source, as pip does; returns the wheel."""
    out.mkdir(exist_ok=True)
    code = f'from setuptools import build_meta; build_meta.{hook}({str(out)!r})'
    done = subprocess.run([sys.executable, '-c', code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob('*.whl')
    return wheel


def test_wheel_holds_code_configs_tools_and_weights(source, tmp_path):
    stale = source / 'build' / 'lib' / 'mmdiffrep' / 'removed.py'
    stale.parent.mkdir(parents=True)
    stale.write_text('left by an earlier build')
    wheel = build(source, 'build_wheel', tmp_path)
    assert wheel.name == f'mmdiffrep-{__version__}-py3-none-any.whl'
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        index = archive.read('mmdiffrep/.mim/model-index.yml').decode()
    expected = {
        f'mmdiffrep/{path.relative_to(source / "mmdiffrep").as_posix()}'
        for pattern in ('**/*.py', 'data/**/*')
        for path in (source / 'mmdiffrep').glob(pattern)
        if path.is_file()
    }
    expected |= {
        f'mmdiffrep/.mim/{path.relative_to(source).as_posix()}'
        for folder in ('configs', 'tools')
        for path in (source / folder).rglob('*')
        if path.is_file()
    }
    missing = expected - names
    assert not missing
    assert {
        'mmdiffrep/.mim/tools/train.py',
        'mmdiffrep/.mim/configs/_base_/default_runtime.py',
    } <= names
    assert 'mmdiffrep/removed.py' not in names
    assert {name.split('/')[0] for name in names} == {
        'mmdiffrep',
        f'mmdiffrep-{__version__}.dist-info',
    }
    assert not [name for name in names if '__pycache__' in name]
    assert index == (source / 'model-index.yml').read_text()
    assert not (source / 'mmdiffrep' / '.mim').exists()  # the source tree stays as it was


def test_editable_install_links_to_the_checkout(source, tmp_path):
    for _ in range(2):  # again over existing links
        build(source, 'build_editable', tmp_path)
    mim = source / 'mmdiffrep' / '.mim'
    for name in ('tools', 'configs', 'model-index.yml'):
        assert (mim / name).is_symlink() and (mim / name).resolve() == source / name


def test_model_index_lists_every_metafile():
    listed = set(re.findall(r'configs/\S+\.ya?ml', (ROOT / 'model-index.yml').read_text()))
    there = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/metafile.yaml')}
    assert listed == there


def test_every_pin_is_allowed_by_the_loose_bounds():
    from packaging.requirements import Requirement

    text = (ROOT / 'requirements' / 'constraints.txt').read_text()
    lines = [line for line in text.split('\n') if line and not line.startswith('#')]
    pins = {r.name.lower(): r for r in map(Requirement, lines)}
    bounds = re.findall(r"'([A-Za-z_\-]+[<>=][^']*)'", (ROOT / 'setup.py').read_text())
    checked = 0
    for bound in map(Requirement, bounds):
        pin = pins.get(bound.name.lower())
        if pin is not None:
            (version,) = (s.version for s in pin.specifier)
            assert version in bound.specifier, (bound, pin)
            checked += 1
    assert checked >= 12


def test_versions_agree():
    assert f'version: {__version__}' in (ROOT / 'CITATION.cff').read_text()
    assert f'## {__version__}' in (ROOT / 'CHANGELOG.md').read_text()


@pytest.mark.parametrize(
    'script', sorted((ROOT / 'tools').glob('*.sh')), ids=lambda path: path.name
)
def test_shell_scripts_parse(script):
    subprocess.run(['bash', '-n', str(script)], check=True)
