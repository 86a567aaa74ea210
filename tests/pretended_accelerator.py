"""An accelerator that is pretended: tensors in main memory that say they are on ``cuda:0``, and refuse what a real one refuses.

What a test on the CPU cannot see is a tensor that was left there: an index, a mask, a table made without ``device=``. Here each tensor
that was moved to the accelerator, or came out of one that was, is marked; mixing it with one that was not raises what torch
raises on a GPU. The numbers are the CPU's, so that whole trainings run, and end as they do there.

Not pretended: kernels of an accelerator, its memory and its speed, autocast.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device('cuda', 0)
# arguments on either side are theirs to move, or say nothing of numbers
FREE = {'copy_', 'is_same_size', 'as_subclass', '__set__', '__len__', '__repr__', '__format__', '__hash__', 'dim', 'size'}
INDEXING = {'__getitem__', '__setitem__', 'index_put_', 'index_put'}
# a tensor without dimensions may stay in main memory, but for these
STRICT = {'cat', 'stack', 'concat', 'matmul', 'mm', 'bmm', 'linear', 'conv2d', 'index_select', 'gather', 'scatter_', 'embedding'}


class OnAccelerator(Tensor):
    """A tensor that is said to be on ``cuda:0``."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        owner = getattr(getattr(func, '__self__', None), '__name__', '')  # of a property, whose func is its __get__
        if name == '__get__' and owner in ('device', 'is_cuda', 'is_cpu'):
            here = isinstance(args[0], OnAccelerator)
            return {'device': DEVICE, 'is_cuda': True, 'is_cpu': False}[owner] if here else super().__torch_function__(func, (), args, kwargs)
        if name in MOVES:
            return moved(name, args, kwargs)
        if name in ('numpy', '__array__'):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        if name == '__deepcopy__':
            return _copied(*args)
        if name == '__reduce_ex__':
            return _plain(args[0]).__reduce_ex__(*args[1:])
        if name == '_has_compatible_shallow_copy_type' and isinstance(args[0], OnAccelerator) != isinstance(args[1], OnAccelerator):
            return False  # a module that moves makes new parameters
        _check(name, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
        if name == 'get_device':
            return 0
        return found if name in ('as_subclass', '__set__') else _marked(found)


def _marked(found: Any) -> Any:
    if isinstance(found, Tensor):  # before all else: a tensor is a sequence, too
        return found if isinstance(found, OnAccelerator) or found.is_meta else Tensor.as_subclass(found, OnAccelerator)
    if isinstance(found, (tuple, list)) and found and any(isinstance(x, Tensor) for x in tree_leaves(found)):
        return tree_map_only(Tensor, _marked, found)
    return found


def _plain(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return Tensor.as_subclass(x, Tensor)


def _copied(x: Tensor, memo: dict) -> Tensor:
    if id(x) not in memo:
        with torch.no_grad():
            new = Tensor.as_subclass(_plain(x).clone(), OnAccelerator)
        new = torch.nn.Parameter(new) if isinstance(x, torch.nn.Parameter) else new
        memo[id(x)] = new.requires_grad_(x.requires_grad)
        vars(memo[id(x)]).update(copy.deepcopy({k: v for k, v in vars(x).items() if k != '_is_param'}, memo))
    return memo[id(x)]


def _check(name: str, args: tuple, kwargs: dict) -> None:
    """Raise what torch raises where tensors are on two devices."""
    found = [x for x in tree_leaves((args, kwargs)) if isinstance(x, (Tensor, torch.Generator))]
    there = [isinstance(x, OnAccelerator) for x in found]
    if not any(there):
        return
    for x in found:
        if isinstance(x, torch.Generator) and x.device.type == 'cpu':
            raise RuntimeError(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")
    left = [x for x, on in zip(found, there) if isinstance(x, Tensor) and not on and not x.is_meta]
    left = [x for x in left if x.dim() or name in STRICT]
    if not left or name in FREE:
        return
    if name in INDEXING:
        indices = tree_leaves(args[1])
        if not isinstance(args[0], OnAccelerator):
            raise RuntimeError(f'{name}: indices should be either on cpu or on the same device as the indexed tensor (cpu)')
        # a slice is copied to, wherever from; places that a tensor names are not
        if all(any(x is i for i in indices) for x in left) or not any(isinstance(i, Tensor) for i in indices):
            return
    shapes = [tuple(x.shape) for x in left]
    raise RuntimeError(f'{name}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! {shapes} on the CPU')


MOVES = {'to', 'cpu', 'cuda', 'type_as'}


def moved(name: str, args: tuple, kwargs: dict) -> Tensor:
    """``x.to(…)``, ``x.cpu()``, ``x.cuda()``, ``x.type_as(other)`` between main memory and the accelerator."""
    x, *rest = args
    kwargs = dict(kwargs)
    target = {'cpu': torch.device('cpu'), 'cuda': DEVICE}.get(name)
    if name == 'type_as':
        rest, kwargs = [rest[0]], {}
    if name == 'cuda':
        rest, kwargs = [], {}
    if 'device' in kwargs:
        device = kwargs.pop('device')
        target = None if device is None else torch.device(device)
    if 'other' in kwargs:
        rest.append(kwargs.pop('other'))
    for value in rest:  # device, dtype, tensor; then non_blocking and copy
        if isinstance(value, Tensor):
            target, kwargs['dtype'] = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            kwargs['dtype'] = value
        elif isinstance(value, (str, int, torch.device)) and not isinstance(value, bool):
            target = torch.device(value)
    if [value for value in rest if isinstance(value, bool)][1:] == [True]:
        kwargs['copy'] = True
    dense = {k: v for k, v in kwargs.items() if k != 'non_blocking' and v is not None}
    was = isinstance(x, OnAccelerator)
    becomes = was if target is None else target.type == 'cuda'
    with torch._C.DisableTorchFunctionSubclass():
        y = Tensor.as_subclass(x, Tensor) if was else x
        if (target or y.device).type == 'meta':
            return y.to('meta', **dense)
        new = y.to('cpu', **dense)
        if new is y and was == becomes:
            return x
        if was != becomes and new.data_ptr() == x.data_ptr():
            new = new.clone()  # across devices it is a copy
        return Tensor.as_subclass(new, OnAccelerator if becomes else Tensor)


class _Factories(TorchFunctionMode):
    """Makes tensors on ``device='cuda'``, and moves plain tensors there."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, '__name__', '')
        if name in MOVES and args and isinstance(args[0], Tensor):
            return moved(name, args, kwargs)
        device = kwargs.get('device')
        if device is not None and torch.device(device).type == 'cuda':
            generator = kwargs.get('generator')
            if generator is not None and generator.device.type == 'cpu':
                raise RuntimeError(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")
            kwargs['device'] = 'cpu'
            return _marked(func(*args, **kwargs))
        if device is not None and torch.device(device).type == 'cpu' and any(isinstance(x, OnAccelerator) for x in args):
            return _plain(func(*args, **kwargs))
        return func(*args, **kwargs)


def _load(file: Any, map_location: Any = None, **options: Any) -> Any:
    there = isinstance(map_location, (str, torch.device)) and torch.device(map_location).type == 'cuda'
    found = torch_load(file, map_location='cpu' if there else map_location, **options)
    return tree_map_only(Tensor, _marked, found) if there else found


torch_load = torch.load


@contextlib.contextmanager
def accelerator() -> Iterator[torch.device]:
    """Inside, ``cuda`` can be moved to, and mmengine's runner moves its model there."""
    from mmengine.device import utils

    with mock.patch.object(utils, 'DEVICE', 'cuda'), mock.patch.object(torch, 'load', _load), _Factories():
        yield DEVICE
