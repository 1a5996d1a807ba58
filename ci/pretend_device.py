"""A pretended second device: finds code that mixes CPU and GPU, on a machine without a GPU.

    with pretended_device() as device:
        model.to(device)
        losses = model([image.to(device)], [target_on_the_device])
        sum(losses.values()).backward()

A tensor there is a wrapper: it says that it lives on `device` (torch's name `meta`, the one device
that needs no hardware and no extra threads), holds its numbers in an ordinary CPU tensor, and
computes on the CPU. The rules are those of CUDA:

* tensors of both devices in one operation raise `MixedDevices`;
* allowed all the same, as on CUDA: copies; CPU indices into a tensor of the device; a CPU tensor
  without dimensions as an operand of an elementwise operation;
* a CPU generator draws no numbers there;
* `numpy()` and what calls it raise; `cpu()`, `item()`, `tolist()`, `bool()` and printing work;
* a new tensor lives where it was asked for, and without `device=` on the CPU.

What it cannot show: kernels that compute other numbers on a GPU, memory and speed, streams,
`non_blocking` copies that are read too early, several processes, torch.compile, and code that asks
for the device by the name `cuda`. Autocast lowers matrix products and convolutions only; operations
that CUDA lifts back to float32 stay as they are. mkldnn layouts are refused, as on CUDA.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
# left out while the CPU computes: autocast there would lower below autograd
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
COPIES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::set_data"}
INDEXED = {"aten::index", "aten::_unsafe_index"}
INDEXED |= {"aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
TENSOR = torch.tensor
FROM_DATA = ("tensor", "as_tensor", "asarray")
PRODUCTS = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d")
LOWERED = {
    torch.nn.functional: (*PRODUCTS, "scaled_dot_product_attention"),
    torch: ("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"),
    torch.Tensor: ("matmul", "__matmul__", "mm", "bmm"),
}


class MixedDevices(RuntimeError):
    """One operation was given tensors of two devices."""


class PretendedTensor(torch.Tensor):
    """A tensor of the pretended device; `held` is the CPU tensor with its numbers."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        """A wrapper of the shape, strides and dtype of `held`."""
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
            requires_grad=False,
        )
        wrapper.held = held
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_meta = False  # it has numbers, which load_state_dict copies without a warning

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})

    def __repr__(self, *, tensor_contents=None):
        return f"pretended {self.held.detach()!r}"

    def __format__(self, specification):
        return format(self.held.detach(), specification)

    def __reduce_ex__(self, protocol):
        return self.held.detach().__reduce_ex__(
            protocol
        )  # saved as what torch.load(..., map_location="cpu") would give

    def __getitem__(self, index):
        return super().__getitem__(_listless(index))

    def __setitem__(self, index, value):
        super().__setitem__(_listless(index), value)

    def tolist(self):
        """Numbers, as from any device."""
        return self.held.detach().tolist()

    def numpy(self, *args, **kwargs):
        """Refused, as on CUDA."""
        raise TypeError(
            "can't convert a tensor of the pretended device to numpy; use Tensor.cpu() first"
        )

    __array__ = numpy


def _listless(index):
    """An index whose lists are CPU tensors; of a list torch makes an index behind the dispatcher."""
    if isinstance(index, tuple):
        return tuple(_listless(part) for part in index)
    return (
        TENSOR(index, dtype=None if index else torch.int64, device=CPU)
        if isinstance(index, list)
        else index
    )


def is_pretended(value) -> bool:
    """Is it a tensor of the pretended device?"""
    return isinstance(value, PretendedTensor)


def held_by(value: torch.Tensor) -> torch.Tensor:
    """The CPU tensor that computes for `value`."""
    return value.held if is_pretended(value) else value


def shapes(tensors: list) -> list[tuple]:
    """The shapes of tensors as plain tuples."""
    return [tuple(value.shape) for value in tensors]


def refuse_mixed(operation, args: tuple, away: list, near: list) -> None:
    """MixedDevices where CUDA would refuse; `away` are tensors of the device, `near` of the CPU."""
    name = operation._schema.name
    if not away or not near or name in COPIES:
        return
    if name in INDEXED and is_pretended(args[0]):
        near = [args[2]] if len(args) > 2 and any(value is args[2] for value in near) else []
    elementwise = (
        torch.Tag.pointwise in operation.tags
        or name.startswith("aten::_foreach_")
        or name in INDEXED
    )
    written = operation._schema.is_mutable and not is_pretended(args[0])
    wrong = [value for value in near if value.dim() or not elementwise]
    if wrong or (near and written):
        raise MixedDevices(
            f"{operation}: expected all tensors to be on one device, found shapes {shapes(away)} "
            f"on the pretended device and {shapes(wrong or near)} on the CPU"
        )


def change_tensors(value, change: Callable):
    """`value` with every tensor in its lists, tuples and dicts replaced by `change(tensor)`."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([change_tensors(one, change) for one in value])
    if isinstance(value, dict):
        return {key: change_tensors(one, change) for key, one in value.items()}
    return value


def compute(operation, args: tuple, kwargs: dict):
    """Run one operation of the dispatcher on the CPU tensors and put its answers where CUDA would."""
    seen = []

    def taken(value: torch.Tensor) -> torch.Tensor:
        seen.append(value)
        return held_by(value)

    plain_args, plain_kwargs = change_tensors(args, taken), change_tensors(kwargs, taken)
    away = [value for value in seen if is_pretended(value)]
    near = [value for value in seen if not is_pretended(value)]
    if any(value.device == DEVICE for value in near):
        raise NotImplementedError(
            f"{operation}: torch made a tensor of the pretended device without numbers; "
            "teach ci/pretend_device.py how"
        )
    refuse_mixed(operation, args, away, near)
    schema, asked = operation._schema, kwargs.get("device")
    if schema.name == "aten::to_mkldnn" and away:
        raise RuntimeError("mkldnn layouts exist on the CPU only")
    to_device = bool(away) if asked is None else torch.device(asked) == DEVICE
    if to_device and any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
        raise MixedDevices(f"{operation}: a CPU generator cannot draw numbers on the device")
    if asked is not None:
        plain_kwargs["device"] = CPU
    plain_kwargs.pop("pin_memory", None)
    with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
        answer = operation(*plain_args, **plain_kwargs)
    if schema.name == "aten::_local_scalar_dense" or not (to_device or away):
        return answer
    givers = {id(held_by(value)): value for value in seen} if schema.is_mutable else {}

    def placed(value: torch.Tensor) -> torch.Tensor:
        giver = givers.get(id(value))
        if giver is None:
            return PretendedTensor(value) if to_device else value
        if giver.shape != value.shape:
            raise NotImplementedError(
                f"{operation} changes the shape of a tensor of the pretended device in place"
            )
        return giver

    return change_tensors(answer, placed)


class _Operations(TorchDispatchMode):
    """Sends every operation through `compute`, also those that make a tensor from nothing."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def _default_device() -> torch.device | None:
    """What `torch.set_default_device` or a block `with torch.device(...)` has set."""
    modes = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext)]
    return modes[-1].device if modes else None


def _from_data(make: Callable) -> Callable:
    """`torch.tensor` and its like, which read Python data behind the dispatcher.

    What they make is made on the CPU, then moved where it was asked for.
    """

    def made(data, *args, device=None, **kwargs):
        device = (
            _default_device() if device is None and not isinstance(data, torch.Tensor) else device
        )
        if device is None or torch.device(device) != DEVICE:
            return (
                make(data, *args, **kwargs)
                if device is None
                else make(data, *args, device=device, **kwargs)
            )
        if isinstance(data, torch.Tensor) and make is not TENSOR:
            return data.to(DEVICE, kwargs.get("dtype") or data.dtype)
        return make(data, *args, device=CPU, **kwargs).to(DEVICE)

    return made


def _new_tensor(self, data, *, dtype=None, device=None, requires_grad=False) -> torch.Tensor:
    """`Tensor.new_tensor`: by default of the dtype and on the device of `self`."""
    made = torch.tensor(
        data,
        dtype=self.dtype if dtype is None else dtype,
        device=self.device if device is None else device,
    )
    return made.requires_grad_(requires_grad)


def _lowering(function: Callable) -> Callable:
    """A product or convolution that turns the device's float32 tensors into autocast's dtype."""

    def lower(value: torch.Tensor) -> torch.Tensor:
        return (
            value.to(torch.get_autocast_dtype("cpu"))
            if is_pretended(value) and value.dtype == torch.float32
            else value
        )

    def lowered(*args, **kwargs):
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = change_tensors(args, lower), change_tensors(kwargs, lower)
        return function(*args, **kwargs)

    return lowered


class _Autocast(torch.autocast):
    """torch.autocast that knows the pretended device and treats it as the CPU."""

    def __init__(self, device_type: str, *args, **kwargs):
        super().__init__("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)


def _replacements() -> list[tuple[object, str, object]]:
    """(owner, name, stand-in) of everything in torch that does not pass through the dispatcher."""
    found = [
        (torch, "autocast", _Autocast),
        (torch.amp, "autocast", _Autocast),
        (torch.Tensor, "new_tensor", _new_tensor),
    ]
    optimizers = sys.modules[torch.optim.Optimizer.__module__]
    fused = [*optimizers._get_fused_kernels_supported_devices(), DEVICE.type]
    found.append((optimizers, "_get_fused_kernels_supported_devices", lambda: fused))
    found += [(torch, name, _from_data(getattr(torch, name))) for name in FROM_DATA]
    for owner, names in LOWERED.items():
        found += [(owner, name, _lowering(getattr(owner, name))) for name in names]
    return found


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """A block in which the device that it gives is a second device with numbers."""
    with ExitStack() as stack:
        for owner, name, stand_in in _replacements():
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(_Operations())
        yield DEVICE
