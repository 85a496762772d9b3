import functools
import math

import pytest
import torch
from pydantic import BaseModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import carvana.training.engine as engine
from carvana.device import Device
from carvana.errors import InputError
from carvana.models import formats
from carvana.models.cpu import DenseConv3x3
from carvana.training.engine import OutOfTime, forward_backward, train_one_epoch
from carvana.training.learner import Learner, build_learner


def batches(photos: int = 16) -> DataLoader:
    images = torch.randint(0, 256, (photos, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, (images[:, :1] > 127).to(torch.uint8) * 255), batch_size=8)


def train(learner: Learner, photos: int = 16, deadline: float = math.inf) -> dict:
    return train_one_epoch(learner, batches(photos), deadline)


def raise_(error: Exception) -> None:
    raise error


@pytest.fixture
def learner(tiny):
    return build_learner(tiny())


def test_an_epoch_learns_and_counts_its_steps_until_the_clock_stops_it(learner, monkeypatch):
    first, *_, last = (train(learner) for _ in range(5))
    assert last["loss"] < first["loss"]
    monkeypatch.setattr(engine.time, "monotonic", lambda: 100.0)
    assert train(learner, deadline=101.0)["skipped_steps"] == 0
    with pytest.raises(OutOfTime):
        train(learner, deadline=99.0)
    assert learner.position.step == 12


def test_the_gradient_of_a_step_is_no_longer_than_allowed(tiny, monkeypatch):
    learner, lengths = build_learner(tiny(optim={"clip": 0.01})), []

    def update(learner: Learner, norm: float) -> bool:
        grads = [parameter.grad.flatten() for parameter in learner.model.parameters()]
        lengths.append((norm, torch.cat(grads).norm().item()))
        return step(learner, norm)

    step = engine.update
    monkeypatch.setattr(engine, "update", update)
    train(learner)
    assert len(lengths) == 2
    for before, after in lengths:
        assert before > 0.01
        assert after == pytest.approx(0.01, rel=1e-3)


def test_an_epoch_validates_no_settings(learner, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("settings are validated in a step")

    for name in ("model_validate", "model_dump"):
        monkeypatch.setattr(BaseModel, name, refuse)
    monkeypatch.setattr(BaseModel, "__init__", refuse)
    train(learner)
    assert learner.position.step == 2


class Reads(TorchDispatchMode):
    """Counts tensors whose values the host asks for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_once(learner, monkeypatch):
    lists, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(tensor) or tolist(tensor))
    monkeypatch.setattr(learner.optimizer, "step", lambda: None)  # AdamW's counters of steps lie on the host
    with Reads() as reads:
        train(learner, 32, deadline=1e12)
    assert (len(lists), reads.count) == (4, 1)  # one in each of four steps, and the loader's seed


def test_nine_bad_losses_skip_their_steps_and_ten_in_a_row_stop_with_advice(learner, capsys):
    loss, position, bad = learner.loss, learner.position, dict.fromkeys(range(9), math.nan)
    bad |= dict.fromkeys(range(12, 22), math.inf)
    learner.loss = lambda logits, masks: loss(logits, masks) * bad.get(position.step, 1)
    before = {name: tensor.clone() for name, tensor in learner.model.named_parameters()}
    assert train(learner, 9 * 8)["skipped_steps"] == 9
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.model.named_parameters())
    assert "step 0: loss nan" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"10 steps in a row .* lower optim\.lr"):
        train(learner, 20 * 8)
    assert position.step == 21


def test_ten_in_a_row_are_counted_over_epochs_of_fewer_steps_and_the_loss_of_none_is_not_zero(learner):
    learner.loss = lambda logits, masks: logits.sum((1, 2, 3)) * math.nan
    for _ in range(3):
        assert math.isnan(train(learner, 3 * 8)["loss"])
    with pytest.raises(InputError, match="10 steps in a row"):
        train(learner, 3 * 8)


def test_poisoned_statistics_are_mended(learner):
    """A NaN in the features reaches BatchNorm's running mean before anyone sees the loss."""
    stem = learner.model.network.encoder.conv_stem
    hook = stem.register_forward_hook(lambda *_: torch.full((8, *_[2].shape[1:]), math.nan))
    assert train(learner, 8)["skipped_steps"] == 1
    hook.remove()
    assert all(torch.isfinite(buffer).all() for buffer in learner.model.buffers())
    assert math.isfinite(train(learner)["loss"])


def test_out_of_memory_halves_the_batch_as_long_as_it_can_and_no_other_error_does(learner, capsys):
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    sizes, errors = [], dict.fromkeys(range(3, 9), full)  # by number of photos

    def refuse(_, inputs):
        sizes.append(len(inputs[0]))
        if sizes[-1] in errors:
            raise errors[sizes[-1]]

    learner.model.register_forward_pre_hook(refuse)
    assert math.isfinite(train(learner)["loss"])
    assert (sizes, learner.position.micro_batch) == ([8, 4, 2, 2, 2, 2, 2, 2, 2, 2], 2)
    assert "going on with 4 photos" in capsys.readouterr().err
    learner.begin_epoch()
    assert learner.position.micro_batch == 8  # the memory may be free again
    errors[8] = errors[4] = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert math.isfinite(train(learner)["loss"])
    errors[2] = RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a tensor")
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        train(learner)
    errors |= {1: full, 2: full}
    with pytest.raises(InputError, match="out of memory with a single photo: choose a smaller"):
        train(learner)


def test_accumulated_gradients_of_coverage_are_the_whole_batchs(learner):
    """BatchNorm aside (in eval mode), micro-batches add up to the gradient of the mean loss."""
    masks, loss, results = [], learner.loss, []
    learner.loss = lambda logits, part_masks: masks.append(part_masks) or loss(logits, part_masks)
    images = torch.tensor([0, 102, 153, 255, 0, 102, 153, 255], dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 32, 48)
    learner.model.eval()
    for learner.position.micro_batch in (8, 3):
        losses = forward_backward(learner, images, images[:, :1])
        results.append([losses, *(parameter.grad.clone() for parameter in learner.model.parameters())])
        learner.optimizer.zero_grad()
    for whole, parts in zip(*results, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-5)
    assert masks[0].unique().tolist() == pytest.approx([0.0, 0.4, 0.6, 1.0])


def test_the_faster_memory_format_is_taken_on_a_gpu_or_the_configured_one(tiny, monkeypatch):
    learner = build_learner(tiny(train={"memory_format": "contiguous"}))
    stem, layouts = learner.model.network.encoder.conv_stem, []
    stem.register_forward_pre_hook(lambda _, inputs: layouts.append(inputs[0].is_contiguous()))
    train(learner, 8)
    assert (layouts, stem.weight.is_contiguous()) == ([True], True)
    gpu, shape = Device(torch.device("cuda")), torch.Size((2, 3, 32, 48))
    for faster in formats.FORMATS:
        slow = lambda *call, faster=faster: 1 + (call[3] != formats.FORMATS[faster])
        monkeypatch.setattr(formats, "_seconds", slow)
        assert formats.choose_format(learner.model, gpu, shape) == faster
    monkeypatch.undo()
    measure, no_room = formats._measure, torch.OutOfMemoryError("CUDA out of memory")
    for lacking in ([torch.channels_last], list(formats.FORMATS.values())):  # for one format, or for both
        short = lambda *call, lacking=lacking: raise_(no_room) if call[3] in lacking else 1.0
        monkeypatch.setattr(formats, "_measure", short)
        best = "contiguous" if len(lacking) == 1 else "channels_last"
        assert formats.choose_format(learner.model, gpu, shape) == best
    monkeypatch.setattr(formats, "_measure", measure)
    before = [tensor.clone() for tensor in learner.model.state_dict().values()]
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: None)
    seconds = formats._seconds(learner.model.train(), learner.device, shape, torch.channels_last)
    assert 0 < seconds < 60
    assert all(torch.equal(*pair) for pair in zip(before, learner.model.state_dict().values(), strict=True))


def test_a_learner_has_a_cpus_fast_convolutions(tiny, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert any(isinstance(module, DenseConv3x3) for module in build_learner(tiny()).model.modules())


def test_a_compiled_model_trains_and_is_saved_as_any(tiny, learner, monkeypatch):
    """Traced by torch.compile but not translated to C++, which takes minutes here."""
    compiled, eager = [], functools.partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self) or eager.__get__(self)())
    traced = build_learner(tiny(train={"compile": True}))
    assert train(traced, 8)["loss"] == pytest.approx(train(learner, 8)["loss"], rel=1e-3)
    assert list(traced.ema.module.state_dict()) == list(learner.ema.module.state_dict())
    assert len(compiled) == 1
