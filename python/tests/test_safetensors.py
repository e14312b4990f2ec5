"""Tensors: the same values as the format's own library reads, and files that are not in the format."""

import json

import numpy
import pytest
import safetensors.numpy

import millrace
import millrace.safetensors


def url(node, folder, name="file"):
    return f"millrace://{node.address}/{folder.name}/{name}"


@pytest.fixture
def tensors():
    random = numpy.random.default_rng(3)
    return {
        "large": random.integers(0, 256, (9, 1 << 22), dtype="u1"),
        "weights": random.normal(size=(100, 37)).astype("f4"),
        "half": random.normal(size=(5,)).astype("f2"),
        "scalar": numpy.array(7, "i8"),
        "empty": numpy.empty((0, 3), "f8"),
        "flags": numpy.array([True, False]),
    }


def test_tensors_are_those_that_were_saved(node, folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "file", {"by": "a test"})
    found = millrace.safetensors.load(url(node, folder))
    assert sorted(found) == sorted(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert numpy.array_equal(found[name], tensor)
    one = millrace.safetensors.load(url(node, folder), names=["half"], threads=1)
    assert list(one) == ["half"]
    header = millrace.safetensors.read_header(url(node, folder))
    assert header["__metadata__"] == {"by": "a test"}
    assert header["weights"]["shape"] == [100, 37]
    with pytest.raises(KeyError, match="no tensor 'other'"):
        millrace.safetensors.load(url(node, folder), names=["other"])
    with pytest.raises(ValueError, match="choose 'numpy' or 'torch'"):
        millrace.safetensors.load(url(node, folder), framework="other")


def test_a_long_header_is_read_whole(node, folder):
    tensors = {f"a name that is long enough {index}": numpy.array([index]) for index in range(2000)}
    safetensors.numpy.save_file(tensors, folder / "file")
    assert millrace.safetensors.load(url(node, folder)) == tensors


def header_of(told, more=b""):
    text = json.dumps(told).encode()
    return len(text).to_bytes(8, "little") + text + more


def told(**changes):
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{]",
        header_of([1, 2]),
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        header_of({"x": 1}),
        header_of(told(), bytes(7)),
        header_of(told(shape=[3]), bytes(12)),
        header_of(told(data_offsets=[-8, 0]), bytes(8)),
        header_of(told(data_offsets=[8, 0]), bytes(8)),
        header_of(told(data_offsets=[0, 8, 16]), bytes(16)),
        header_of(told(shape=["2"]), bytes(8)),
        header_of(told(shape=[True, 2]), bytes(8)),
        header_of(told(shape=None), bytes(8)),
    ],
)
def test_other_files_are_refused(node, folder, content):
    (folder / "file").write_bytes(content)
    with pytest.raises(ValueError, match="is not in the format safetensors"):
        millrace.safetensors.load(url(node, folder))


def test_types_that_numpy_lacks_are_told(node, folder):
    (folder / "file").write_bytes(header_of(told(dtype="F4"), bytes(8)))
    with pytest.raises(TypeError, match="type F4"):
        millrace.safetensors.load(url(node, folder))


def test_another_kind_of_url_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="not a URL millrace"):
        millrace.safetensors.load(str(tmp_path / "file"))


def test_torch_has_its_own_types(node, folder):
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    tensors = {"b": torch.arange(10).to(torch.bfloat16), "s": torch.tensor(3.5)}
    save(tensors, folder / "file")
    found = millrace.safetensors.load(url(node, folder), framework="torch")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_bfloat16_of_numpy_is_that_of_ml_dtypes(node, folder):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = numpy.arange(10).astype(ml_dtypes.bfloat16)
    told = {"b": {"dtype": "BF16", "shape": [10], "data_offsets": [0, 20]}}
    (folder / "file").write_bytes(header_of(told, values.tobytes()))
    assert numpy.array_equal(millrace.safetensors.load(url(node, folder))["b"], values)
