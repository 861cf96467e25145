from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from support.tiny_mllms import training_records

from hpa_lightning.data.batch_order import TaskBatchSampler, TaskLoader, named_generator


def flat(sampler: TaskBatchSampler) -> list[int]:
    return [index for batch in sampler for index in batch]


def test_an_epoch_is_a_permutation_that_depends_on_seed_task_and_epoch() -> None:
    orders = {}
    for seed, task, epoch in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0)]:
        sampler = TaskBatchSampler(23, 4, seed, task)
        sampler.set_epoch(epoch)
        assert [len(batch) for batch in sampler] == [4, 4, 4, 4, 4, 3] and len(sampler) == 6
        orders[seed, task, epoch] = flat(sampler)
        assert sorted(orders[seed, task, epoch]) == list(range(23))
        assert flat(sampler) == orders[seed, task, epoch]
    assert len({tuple(order) for order in orders.values()}) == 4


def test_the_order_does_not_depend_on_the_place_in_the_stream_or_global_state() -> None:
    torch.manual_seed(1)
    early = TaskBatchSampler(9, 2, 0, "a")
    first = flat(early)
    torch.manual_seed(2)
    late = TaskBatchSampler(9, 2, 0, "a", first_epoch=5)
    assert flat(late) == first
    late.set_epoch(6)
    early.set_epoch(1)
    assert flat(late) == flat(early) != first


@pytest.mark.parametrize("size", [1, 5, 16, 17, 23])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_one_order(size: int, world_size: int) -> None:
    samplers = [TaskBatchSampler(size, 4, 0, "a", rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(rank) for rank in batches} == {len(samplers[0])}  # nobody waits for the others
    for together in zip(*batches, strict=True):
        assert len({len(batch) for batch in together}) == 1
    seen = Counter(index for rank in batches for batch in rank for index in batch)
    repeated = -size % world_size
    assert set(seen) == set(range(size)) and sum(seen.values()) == size + repeated
    # The global batches are those of one device with a batch size as large.
    single = list(TaskBatchSampler(size, 4 * world_size, 0, "a"))
    for number, together in enumerate(zip(*batches, strict=True)):
        dealt = [index for row in zip(*together, strict=True) for index in row]
        assert dealt[: len(single[number])] == single[number]


def test_steps_cycle_through_reshuffled_passes() -> None:
    sampler = TaskBatchSampler(7, 3, 0, "a", batches=5)
    order = flat(sampler)
    assert len(sampler) == 5 and len(order) == 15
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7] != order[7:14]


def test_named_generators_differ_by_every_part() -> None:
    draws = [torch.rand(4, generator=named_generator(*parts)) for parts in [(0, "a"), (0, "b"), (1, "a"), (0, "a")]]
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_goes_on_after_the_batches_that_were_seen(num_workers: int) -> None:
    records = training_records(7)

    def loader(seen: int = 0) -> TaskLoader:
        sampler = TaskBatchSampler(len(records), 2, 0, "a")
        return TaskLoader(records, sampler, lambda batch: {"ids": [r.id for r in batch]}, num_workers, lambda: seen)

    whole = list(loader())
    assert sorted(name for batch in whole for name in batch["ids"]) == [f"r{index}" for index in range(7)]
    for seen in range(5) if num_workers == 0 else [2]:
        state = loader(seen).state_dict()
        resumed = loader()
        resumed.load_state_dict(state)
        assert list(resumed) == whole[seen:] and len(resumed) == 4
        assert list(resumed) == whole[seen:]  # Lightning iterates more than once
        resumed.sampler.set_epoch(1)
        assert len(list(resumed)) == 4  # the next epoch is whole


def test_loader_refuses_a_position_counted_in_other_batches() -> None:
    records = training_records(7)
    state = TaskLoader(records, TaskBatchSampler(7, 2, 0, "a"), dict, batches_seen=lambda: 2).state_dict()
    changed = TaskLoader(records, TaskBatchSampler(7, 3, 0, "a", world_size=2), dict)
    with pytest.raises(ValueError, match=r"batch_size 2 -> 3, world_size 1 -> 2; which records are left"):
        changed.load_state_dict(state)
    changed.load_state_dict({**state, "batches_seen": 0})


def test_iterating_a_loader_draws_nothing_from_the_global_random_state() -> None:
    loader = TaskLoader(training_records(4), TaskBatchSampler(4, 2, 0, "a"), lambda batch: {"count": len(batch)})
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_made_one_after_the_other() -> None:
    """A long epoch is not listed before its first batch, nor for the names of a batch."""
    records = training_records(3)
    loader = TaskLoader(records, TaskBatchSampler(3, 2, 0, "a", batches=10**12), lambda batch: {"n": len(batch)})
    assert [batch["n"] for batch in islice(loader, 4)] == [2, 2, 2, 2]
    assert len(loader.names(5)) == 2
