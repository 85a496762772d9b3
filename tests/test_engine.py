import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import carvana.engine as engine
from carvana.engine import OutOfTime, forward_backward, train_one_epoch
from carvana.errors import InputError
from carvana.learner import build_learner

FOREVER = float("inf")


def batches(photos: int = 16, batch_size: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (photos, 3, 32, 48), dtype=torch.uint8, generator=generator)
    masks = (images[:, :1] > 127).to(torch.uint8) * 255
    return DataLoader(TensorDataset(images, masks, torch.arange(photos)), batch_size)


@pytest.fixture
def learner(tiny):
    return build_learner(tiny())


def poison(learner, steps: set[int], value: float = math.nan) -> None:
    """Makes the loss `value` in these steps."""
    whole = learner.loss
    learner.loss = lambda logits, masks: whole(logits, masks) * (value if learner.progress.step in steps else 1)


def test_an_epoch_learns_and_counts_its_steps(learner):
    first = train_one_epoch(learner, batches(), FOREVER)
    for _ in range(4):
        last = train_one_epoch(learner, batches(), FOREVER)
    assert learner.progress.step == 10
    assert last["loss"] < first["loss"]
    assert last["skipped_steps"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_loss_skips_its_step_and_says_so(learner, capsys, value):
    train_one_epoch(learner, batches(), FOREVER)
    poison(learner, {2}, value)
    before = {name: tensor.clone() for name, tensor in learner.model.named_parameters()}
    record = train_one_epoch(learner, batches(photos=8), FOREVER)
    assert record["skipped_steps"] == 1
    assert "step 2: loss" in capsys.readouterr().err
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.model.named_parameters())
    record = train_one_epoch(learner, batches(), FOREVER)
    assert record["skipped_steps"] == 0
    assert math.isfinite(record["loss"])


def test_poisoned_statistics_are_mended(learner):
    """A NaN in the features reaches BatchNorm's running mean before anyone sees the loss."""
    train_one_epoch(learner, batches(), FOREVER)
    stem = learner.model.network.encoder.conv_stem
    hook = stem.register_forward_hook(lambda *_: torch.full((8, *_[2].shape[1:]), math.nan))
    train_one_epoch(learner, batches(photos=8), FOREVER)
    hook.remove()
    assert all(torch.isfinite(buffer).all() for buffer in learner.model.buffers())
    assert math.isfinite(train_one_epoch(learner, batches(), FOREVER)["loss"])


def test_ten_bad_losses_in_a_row_stop_with_advice(learner):
    poison(learner, set(range(100)))
    with pytest.raises(InputError, match=r"10 steps in a row .* lower optim\.lr"):
        train_one_epoch(learner, batches(photos=96), FOREVER)
    assert learner.progress.step == 9


def test_nine_bad_losses_do_not_stop(learner):
    poison(learner, set(range(9)))
    assert train_one_epoch(learner, batches(photos=96), FOREVER)["skipped_steps"] == 9


def limited_memory(learner, photos: int) -> list[int]:
    """Lets the model take so many photos at once and no more; returns the list of batch sizes that it was given."""
    sizes = []

    def refuse(_, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > photos:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    learner.model.register_forward_pre_hook(refuse)
    return sizes


def test_out_of_memory_halves_the_batch_and_goes_on(learner, capsys):
    sizes = limited_memory(learner, 2)
    record = train_one_epoch(learner, batches(), FOREVER)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert learner.progress.micro_batch == 2
    assert math.isfinite(record["loss"])
    assert "going on with 4 photos" in capsys.readouterr().err


def test_a_photo_that_does_not_fit_ends_in_advice(learner):
    limited_memory(learner, 0)
    with pytest.raises(InputError, match="out of memory with a single photo: choose a smaller"):
        train_one_epoch(learner, batches(), FOREVER)


def test_other_errors_are_not_taken_for_lack_of_memory(learner):
    learner.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train_one_epoch(learner, batches(), FOREVER)


def test_accumulated_gradients_are_the_whole_batchs(learner):
    """BatchNorm aside (in eval mode), micro-batches add up to the gradient of the mean loss."""
    images, masks, _ = next(iter(batches()))
    learner.model.eval()
    gradients = []
    for micro_batch in (8, 3):
        learner.progress.micro_batch = micro_batch
        loss = forward_backward(learner, images, masks)
        gradients.append((loss, [p.grad.clone() for p in learner.model.parameters()]))
        learner.optimizer.zero_grad()
    assert gradients[0][0].shape == (8,)
    assert torch.allclose(gradients[0][0], gradients[1][0], rtol=1e-4)
    for whole, parts in zip(gradients[0][1], gradients[1][1], strict=True):
        assert torch.allclose(whole, parts, atol=1e-5)


def test_the_clock_stops_an_epoch(learner, monkeypatch):
    monkeypatch.setattr(engine.time, "monotonic", lambda: 100.0)
    train_one_epoch(learner, batches(), deadline=101.0)
    with pytest.raises(OutOfTime):
        train_one_epoch(learner, batches(photos=96), deadline=99.0)


@pytest.mark.parametrize(("hard", "expected"), [(False, {0.0, 0.4, 0.6, 1.0}), (True, {0.0, 1.0})])
def test_targets_are_coverage_or_cut_at_half_of_it(tiny, hard, expected):
    learner, seen = build_learner(tiny(train={"hard_targets": hard})), []
    whole = learner.loss
    learner.loss = lambda logits, masks: (seen.append(masks), whole(logits, masks))[1]
    masks = torch.tensor([0, 102, 153, 255], dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 1, 32, 48)
    forward_backward(learner, torch.zeros(4, 3, 32, 48, dtype=torch.uint8), masks)
    assert sorted(seen[0].unique().tolist()) == pytest.approx(sorted(expected))
