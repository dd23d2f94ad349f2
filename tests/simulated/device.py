"""A simulated accelerator: tensors on `sim:0` compute on the CPU and refuse to meet others.

    simulate()                                  # once in a process
    model.to("sim")(ids.to("sim"))

What a GPU refuses is refused: tensors of two devices in one operation (numbers without a dimension and indices of a
device's tensor excepted), a CPU generator. What a GPU waits for is counted (`counts`), and what it holds (`memory`).
Kernels are those of the CPU, so results are the CPU's to the bit where the operations are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import return_and_correct_aliasing

from tests.simulated.counts import Counts
from tests.simulated.memory import Memory

DEVICE = torch.device("cpu")  # until `simulate`
DOUBLE = True  # whether it computes in fp64
MEMORY = Memory()
COUNTS = Counts()

# Their results' shapes depend on numbers of the device, or they are numbers of the device.
WAITS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "unique_consecutive"),
    *("_unique", "_unique2", "unique_dim", "_linalg_check_errors", "repeat_interleave", "nonzero_static"),
}
COPIES = {"_to_copy", "copy_"}


def count() -> Counts:
    """Begins to count anew."""
    global COUNTS
    COUNTS = Counts()
    return COUNTS


class SimTensor(torch.Tensor):
    """A tensor of the device; `held` is where its numbers are."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> SimTensor:
        if inner.dtype == torch.float64 and not DOUBLE:
            raise TypeError("the device has no float64; use float32")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.held = inner
        MEMORY.hold(made, inner)
        return made

    def __repr__(self, **_: Any) -> str:
        return f"SimTensor({self.held})"

    def tolist(self) -> Any:
        COUNTS.copy(self.held.nbytes, to_host=True)
        COUNTS.wait("tolist")
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert sim:0 device type tensor to numpy; use Tensor.cpu() first")

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:  # what is read back is put where it's wanted by whoever reads it
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        made = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, new: Any) -> None:  # what torch does by itself, where a tensor isn't wrapped
        if not isinstance(new, SimTensor):
            raise RuntimeError("incompatible tensor type: a sim tensor's data can't become another device's")
        torch.Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.held = new.held
        MEMORY.hold(self, new.held)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation with tensors of the device among its arguments, or which makes one."""
    name = func._schema.name.partition("::")[2]
    if name == "_has_compatible_shallow_copy_type":
        return all(isinstance(x, SimTensor) for x in args)
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [isinstance(x, SimTensor) for x in tensors]
    target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    _check(name, tensors, there, kwargs)
    _count(name, args, tensors, there, target)
    inside = {**kwargs, "device": torch.device("cpu")} if target is not None else kwargs
    if name == "histc" and not args[0].is_floating_point():  # a GPU counts whole numbers, a CPU doesn't
        return SimTensor(func(args[0].held.float(), *args[1:], **inside).to(args[0].dtype))
    out = func(*pytree.tree_map(_inner, args), **pytree.tree_map(_inner, inside))
    if name == "copy_":
        return args[0]
    on = target == DEVICE.type if target is not None else any(there)
    if not on:
        # On the way to the host, what stays where it is would be shared.
        return out.clone() if name == "_to_copy" and out is tensors[0] else out
    made = return_and_correct_aliasing(func, args, kwargs, pytree.tree_map(_outer, out))
    if any(isinstance(x, SimTensor) and x.held.shape != x.shape for x in tensors):
        raise NotImplementedError(f"{name} changes the shape of a tensor on the simulated device")
    return made


def _inner(x: Any) -> Any:
    return x.held if isinstance(x, SimTensor) else x


def _outer(x: Any) -> Any:
    return SimTensor(x) if isinstance(x, torch.Tensor) and not isinstance(x, SimTensor) else x


def _check(name: str, tensors: list[Any], there: list[bool], kwargs: dict[str, Any]) -> None:
    if name in COPIES or not any(there):
        return
    indexes = name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index") and there[0]
    strangers = [x for x, on in zip(tensors, there, strict=True) if not on and x.dim()]
    if indexes:
        strangers = [x for x in strangers if x.dtype not in (torch.int64, torch.int32, torch.bool, torch.uint8)]
    if strangers:
        raise RuntimeError(
            f"{name}: Expected all tensors to be on the same device, but found at least two devices, sim:0 and cpu!"
        )
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != DEVICE.type:
        raise RuntimeError(f"{name}: Expected a 'sim' device type for generator but found '{generator.device.type}'")


def _count(name: str, args: Any, tensors: list[Any], there: list[bool], target: str | None) -> None:
    if name == "copy_" and there[0] != there[1]:
        copied(tensors[1], to_host=there[1], waits=not (len(args) > 2 and args[2]))
    elif name == "_to_copy" and target is not None and (target == DEVICE.type) != there[0]:
        copied(tensors[0], to_host=there[0], waits=True)
    elif name in WAITS and any(there):
        COUNTS.wait(name)
    elif name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
        x.dtype in (torch.bool, torch.uint8) for x in tensors[1:]
    ):
        COUNTS.wait("boolean index")


def copied(tensor: torch.Tensor, to_host: bool, waits: bool) -> None:
    COUNTS.copy(tensor.nbytes, to_host)
    if to_host and waits:
        COUNTS.wait("copy to the host")


def backend() -> Any:
    """torch's module for the device."""
    return torch.get_device_module(DEVICE)


_registered: list[Any] = []


def simulate() -> torch.device:
    """Registers the device with torch, once in a process, and gives it."""
    global DEVICE
    if not _registered:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

        from tests.simulated.backend import Backend, kernels

        _setup_privateuseone_for_python_backend("sim", Backend())
        DEVICE = torch.device("sim", 0)
        _registered.extend(kernels())
    # A backward pass before this one has begun torch's threads for devices, and there was none for this one.
    torch.autograd.set_multithreading_enabled(False)
    return DEVICE
