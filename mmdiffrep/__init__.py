"""mmdiffrep: pre-trained diffusion networks as ordinary OpenMMLab components.

Importing this registers the components and installs the upstream workarounds; it loads neither diffusers nor a toolkit.
"""

from . import registry
from .compat import install
from .version import __version__

install()

__all__ = ['__version__', 'registry']
