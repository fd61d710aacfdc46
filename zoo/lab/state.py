"""State as tensors and JSON, so that nothing that is loaded is unpickled: `pack`, `unpack`, and the random states."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Stateful(Protocol):
    """Whatever has a state dict: a module, an optimiser, a scheduler, a callback."""

    def state_dict(self) -> Any:
        """Nested mappings, sequences, tensors and JSON values."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Go back to a state that `state_dict` gave."""


class StateError(ValueError):
    """A state that tensors and JSON cannot hold; the text says which part of it."""


def pack(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A nested state as a JSON value and {name: tensor on the CPU}; a tensor that stands in two places is kept once.

    Raises:
        StateError: something is neither tensor, mapping, sequence nor JSON value.

    Example:
        >>> pack({"loc": torch.zeros(2), 0: (1, 2.5)})
        ({'dict': [['loc', {'tensor': 'loc'}], [0, {'tuple': [1, 2.5]}]]}, {'loc': tensor([0., 0.])})
    """
    packer = _Packer()
    return packer.pack(state, ()), packer.tensors


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.known: dict[Any, str] = {}
        self.storages: set[int] = set()

    def pack(self, value: Any, path: tuple[str, ...]) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._name(value.detach(), ".".join(path))}
        if isinstance(value, Mapping):
            return {"dict": [[self._key(key, path), self.pack(v, (*path, str(key)))] for key, v in value.items()]}
        if isinstance(value, list | tuple):
            items = [self.pack(item, (*path, str(i))) for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        raise StateError(f"the state {'.'.join(path)} is of type {type(value).__name__}; give tensors or JSON values")

    def _key(self, key: Any, path: Sequence[str]) -> Any:
        if not isinstance(key, bool | int | float | str):
            raise StateError(f"the state {'.'.join(path)} has the key {key!r}; keys are text or numbers")
        return key

    def _name(self, tensor: Tensor, name: str) -> str:
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        identity = (*place, tensor.dtype, tensor.device)
        if identity in self.known:
            return self.known[identity]
        while name in self.tensors:
            name += "_"
        self.tensors[name] = self._whole(tensor)
        if tensor.numel():  # empty tensors all have the same address
            self.known[identity] = name
        return name

    def _whole(self, tensor: Tensor) -> Tensor:
        """On the CPU, with a storage of its own, as safetensors wants it."""
        tensor = tensor.cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() > tensor.nbytes or storage.data_ptr() in self.storages:
            return tensor.clone()
        self.storages.add(storage.data_ptr())
        return tensor


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `pack` packed. Places that shared a tensor share it again."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in content)
    return {key: unpack(item, tensors) for key, item in content}


class Randomness:
    """The global random states of Python, numpy and torch (with its CUDA devices) as one state dict."""

    def state_dict(self) -> dict[str, Any]:
        """The states as they are now."""
        of_numpy: Any = np.random.get_state(legacy=False)
        key = torch.from_numpy(of_numpy["state"]["key"].astype(np.int64))
        return {
            "python": random.getstate(),
            "numpy": {**of_numpy, "state": {**of_numpy["state"], "key": key}},
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go back to such states; those of devices that are not here are left out."""
        random.setstate(state_dict["python"])
        of_numpy = state_dict["numpy"]
        key = of_numpy["state"]["key"].numpy().astype(np.uint32)
        np.random.set_state({**of_numpy, "state": {**of_numpy["state"], "key": key}})
        torch.set_rng_state(state_dict["torch"])
        for device, state in enumerate(state_dict["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
