import pytest
import torch

from replib.device import resolve_device


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("name", [None, "auto"])
def test_auto_is_the_cpu_without_cuda(name, no_gpu):
    assert resolve_device(name) == torch.device("cpu")


@pytest.mark.parametrize("name", [None, "auto"])
def test_auto_is_cuda_where_there_is_one(name, two_gpus):
    assert resolve_device(name) == torch.device("cuda")


def test_a_named_device_is_taken_as_named(two_gpus):
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_without_one_names_both_remedies(name, no_gpu):
    with pytest.raises(ValueError, match="use --device cpu, or install a CUDA build of torch"):
        resolve_device(name)


def test_a_cuda_index_beyond_the_last_names_the_range(two_gpus):
    with pytest.raises(ValueError, match="cuda:2 was not found: use cuda:0 to cuda:1"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "tpu", "", "cuda:x", "cpu cuda", "mps"])
def test_an_unknown_device_is_refused_with_the_known_ones(name, two_gpus):
    with pytest.raises(ValueError, match="use auto, cpu or cuda"):
        resolve_device(name)
