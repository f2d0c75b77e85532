"""The kernels of a distribution folder from Python: entries by family, arguments by name, launches.

Needs no package: the driver is called through ctypes, or through NVIDIA's `cuda-python` where that is
installed. `pack` is all that a program with another binding needs (cupy: hand it `pack(...)` as bytes).

Trap: kernel parameters are positional and untyped. The manifest has their order and types, and every
argument is checked against it here, so that a wrong one is an error and not a wrong result.
"""

import ctypes
import json
import os
import struct
from pathlib import Path

# Manifest type -> struct format; pointers are addresses.
FORMATS = {"u32": "I", "i32": "i", "u64": "Q", "i64": "q", "f32": "f", "f64": "d"}


class Error(Exception):
    """A driver's error code, or an argument that does not fit."""


def parameters(kernel, arguments):
    """Format and value of every parameter of `kernel`, in its order, from `arguments` by name."""
    names = [param["name"] for param in kernel["params"]]
    missing = [name for name in names if name not in arguments]
    if missing:
        raise Error(f"{kernel['name']} needs {', '.join(missing)}")
    out = []
    for param in kernel["params"]:
        value, kind = arguments[param["name"]], param["type"]
        pointer = kind.startswith("*")
        text = "Q" if pointer else FORMATS[kind]
        if not pointer and text in "fd":
            value = float(value)
        elif isinstance(value, bool) or not isinstance(value, int):
            raise Error(f"{kernel['name']} takes {param['name']} as {kind}, not {value!r}")
        try:
            data = struct.pack("<" + text, value)
        except struct.error as why:
            raise Error(f"{kernel['name']}: {param['name']} = {value} is no {kind}: {why}") from None
        assert len(data) == param["bytes"]
        out.append((text, value))
    return out


def pack(kernel, arguments):
    """The parameter block: every parameter at its natural alignment, as CU_LAUNCH_PARAM_BUFFER_POINTER takes it."""
    block = b""
    for text, value in parameters(kernel, arguments):
        size = struct.calcsize(text)
        block += b"\0" * (-len(block) % size) + struct.pack("<" + text, value)
    return block


class Ctypes:
    """The driver API through ctypes. PSA_LIBCUDA names another library than libcuda.so.1."""

    def __init__(self):
        try:
            self.cuda = ctypes.CDLL(os.environ.get("PSA_LIBCUDA", "libcuda.so.1"))
        except OSError as why:
            raise Error(f"no CUDA driver: {why}") from None
        self._call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name, *arguments):
        result = getattr(self.cuda, name)(*arguments)
        if result != 0:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorName(result, ctypes.byref(text))
            raise Error(f"{name}: {(text.value or b'?').decode()} ({result})")

    def load(self, image):
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), image)
        return module

    def function(self, module, name, shared_bytes):
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        if shared_bytes > 48 * 1024:
            # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, 8, shared_bytes)
        return function

    def alloc(self, size):
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def write(self, pointer, data):
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(pointer), bytes(data), ctypes.c_size_t(len(data)))

    def read(self, pointer, size):
        data = ctypes.create_string_buffer(size)
        self._call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(pointer), ctypes.c_size_t(size))
        return data.raw

    def launch(self, function, grid, block, shared_bytes, block_of_parameters):
        buffer = ctypes.create_string_buffer(block_of_parameters, len(block_of_parameters))
        size = ctypes.c_size_t(len(block_of_parameters))
        # CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 0)
        self._call("cuLaunchKernel", function, *grid, *block, shared_bytes, None, None, extra)

    def synchronize(self):
        self._call("cuCtxSynchronize")


class CudaPython:
    """The driver API through cuda-python (`pip install cuda-python`)."""

    def __init__(self):
        from cuda.bindings import driver

        self.driver = driver
        self._call("cuInit", 0)
        device = self._call("cuDeviceGet", 0)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", device))

    def _call(self, name, *arguments):
        result, *values = getattr(self.driver, name)(*arguments)
        if result != self.driver.CUresult.CUDA_SUCCESS:
            raise Error(f"{name}: {result.name} ({int(result)})")
        return values[0] if values else None

    def load(self, image):
        return self._call("cuModuleLoadData", image)

    def function(self, module, name, shared_bytes):
        function = self._call("cuModuleGetFunction", module, name.encode())
        if shared_bytes > 48 * 1024:
            most = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, most, shared_bytes)
        return function

    def alloc(self, size):
        return int(self._call("cuMemAlloc", size))

    def write(self, pointer, data):
        self._call("cuMemcpyHtoD", pointer, bytes(data), len(data))

    def read(self, pointer, size):
        data = bytearray(size)
        self._call("cuMemcpyDtoH", data, pointer, size)
        return bytes(data)

    def launch(self, function, grid, block, shared_bytes, block_of_parameters):
        buffer = ctypes.create_string_buffer(block_of_parameters, len(block_of_parameters))
        size = ctypes.c_size_t(len(block_of_parameters))
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 0)
        self._call("cuLaunchKernel", function, *grid, *block, shared_bytes, 0, 0, ctypes.addressof(extra))

    def synchronize(self):
        self._call("cuCtxSynchronize")


class Kernels:
    """The folder that `cargo xtask dist` makes, loaded into a driver."""

    def __init__(self, folder, driver):
        self.driver = driver
        self.manifest = json.loads((Path(folder) / "manifest.json").read_text())
        self.module = driver.load((Path(folder) / "psa_kernels.ptx").read_bytes() + b"\0")
        self.functions = {}

    def find(self, family, **values):
        """The manifest's entry of a family whose generics have these values: `find("score", T="bf16", D=64, P=1)`."""
        return find(self.manifest, family, **values)

    def launch(self, kernel, grid, arguments):
        """Launches an entry with arguments by name; those that it does not take are passed over."""
        name, shared = kernel["name"], kernel["shared_bytes"]
        if name not in self.functions:
            self.functions[name] = self.driver.function(self.module, name, shared)
        self.driver.launch(self.functions[name], grid, kernel["block"], shared, pack(kernel, arguments))


def find(manifest, family, **values):
    """As `Kernels.find`, of a manifest."""
    for kernel in manifest["kernels"]:
        of = {s["generic"]: s["value"] for s in kernel["specialisation"]}
        if kernel["family"] == family and all(of.get(g) == str(v) for g, v in values.items()):
            return kernel
    raise Error(f"no kernel {family} with {values}")
