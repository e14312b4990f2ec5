"""Reads the tensors of a checkpoint in the format safetensors, in parallel and in large ranges.

>>> tensors = millrace.safetensors.load("millrace://node1:7070/models/small.safetensors")

Each tensor has memory of its own, which its bytes are read into. All of them are of one version of the file.
"""

import errno
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy
from fsspec.core import url_to_fs

__all__ = ["load", "read_header"]

# Bytes of one read. Guessed: enough blocks to keep every shard of a node at work.
CHUNK = 32 << 20
# Bytes of the longest header that is read, as the format's own library has it.
HEADER_MAX = 100_000_000
# Bytes that are read at first: the header of most files is in them.
HEAD = 64 << 10

# Names of the format, each with the type of numpy that its bytes have; those of ml_dtypes are by name.
NUMPY_TYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "C64": "<c8",
}
ML_TYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
TORCH_TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    **ML_TYPES,
}
SIZES = {name: numpy.dtype(kind).itemsize for name, kind in NUMPY_TYPES.items()}
SIZES |= {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


def load(path, *, names=None, framework="numpy", threads=4, pin_memory=False, **options):
    """Returns the tensors of a file by their names.

    ``path`` is a URL ``millrace://``, and ``options`` are those of its filesystem. ``names`` are the
    tensors to read, else all. They are arrays of numpy, or tensors of torch with ``framework="torch"``,
    in pinned memory with ``pin_memory``. ``threads`` read at the same time, 1 to 64.

    Raises ValueError for a file that is not in the format, KeyError for a name that it lacks, TypeError
    for a type that numpy lacks (install ml_dtypes, or choose torch), and ``millrace.StaleError`` if the
    file changes meanwhile.
    """
    if framework not in ("numpy", "torch"):
        raise ValueError(f"framework is {framework!r}; choose 'numpy' or 'torch'")
    if not 1 <= threads <= 64:
        raise ValueError(f"threads is {threads}; choose 1 to 64")
    client, file = _open(path, options)
    start, tensors, _ = _parse(client, file)
    names = list(tensors) if names is None else list(names)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise KeyError(f"'{file.path}' has no tensor {missing[0]!r}")
    found = {}
    work = []
    for name in names:
        kind, shape, begin, end = tensors[name]
        if framework == "torch":
            found[name], memory = _torch_memory(kind, shape, pin_memory)
        else:
            found[name], memory = _numpy_memory(kind, shape)
        for offset in range(0, end - begin, CHUNK):
            part = memory[offset : min(offset + CHUNK, end - begin)]
            work.append((start + begin + offset, part))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda each: _fill(client, file, *each), work):
            pass
    return found


def read_header(path, **options):
    """Returns what a file says of its tensors, by their names, and its metadata, by ``__metadata__``."""
    _, tensors, metadata = _parse(*_open(path, options))
    header = {
        name: {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
        for name, (kind, shape, begin, end) in tensors.items()
    }
    return {"__metadata__": metadata, **header} if metadata else header


def _open(path, options):
    fs, inner = url_to_fs(path, **options)
    if not hasattr(fs, "client"):
        raise ValueError(f"'{path}' is not a URL millrace://host:port/path")
    return fs.client, fs.client.stat(inner)


def _fill(client, file, offset, memory):
    count = client.read_into(file, offset, memory)
    if count != len(memory):
        raise OSError(errno.EIO, f"'{file.path}' ends before its tensors do")


def _parse(client, file):
    """Returns where the bytes of tensors begin, the tensors, and the metadata."""

    def wrong(reason):
        return ValueError(f"'{file.path}' is not in the format safetensors: {reason}")

    head = client.read(file, 0, HEAD)
    if len(head) < 8:
        raise wrong("it is shorter than 8 bytes")
    length = int.from_bytes(head[:8], "little")
    if length > HEADER_MAX or 8 + length > file.length:
        raise wrong(f"its header of {length} bytes is too long")
    text = head[8 : 8 + length]
    text += client.read(file, 8 + len(text), length - len(text))
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors = {
            name: (told["dtype"], tuple(told["shape"]), *told["data_offsets"])
            for name, told in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise wrong(f"its header cannot be read ({error})") from None
    end_of_all = file.length - 8 - length
    for name, told in tensors.items():
        if len(told) != 4 or not all(type(each) is int and each >= 0 for each in (*told[1], *told[2:])):
            raise wrong(f"the place of {name!r} is not made of whole numbers")
        kind, shape, begin, end = told
        if kind not in SIZES:
            raise TypeError(f"{name!r} in '{file.path}' is of the type {kind}, which is not known here")
        if end > end_of_all or end - begin != math.prod(shape) * SIZES[kind]:
            raise wrong(f"{name!r} has not the bytes of its shape")
    return 8 + length, tensors, metadata


def _numpy_memory(kind, shape):
    if kind in NUMPY_TYPES:
        array = numpy.empty(shape, NUMPY_TYPES[kind])
    else:
        try:
            import ml_dtypes
        except ImportError:
            advice = "install ml_dtypes, or choose framework='torch'"
            raise TypeError(f"numpy has no type {kind}; {advice}") from None
        array = numpy.empty(shape, getattr(ml_dtypes, ML_TYPES[kind]))
    return array, array.reshape(-1).view("u1")


def _torch_memory(kind, shape, pin_memory):
    import torch

    tensor = torch.empty(shape, dtype=getattr(torch, TORCH_TYPES[kind]), pin_memory=pin_memory)
    return tensor, tensor.reshape(-1).view(torch.uint8).numpy()
