"""ToyScenes: a deterministic generator of small pictures with every kind of annotation."""

from .scene import Scene, Thing, generate_scene
from .views import ViewPair, generate_pair
from .writer import write_toyscenes

__all__ = ['Scene', 'Thing', 'ViewPair', 'generate_pair', 'generate_scene', 'write_toyscenes']
