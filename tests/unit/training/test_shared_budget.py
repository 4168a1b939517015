"""Gradients that are exchanged at once."""

import torch

from oddsmith.training.shared_budget import BUCKET_BYTES, _buckets


def test_small_gradients_of_a_kind_share_a_bucket_and_large_ones_have_their_own():
    small = [torch.full((1000,), float(number)) for number in range(5)]
    half, large = torch.ones(7, dtype=torch.bfloat16), torch.ones(BUCKET_BYTES // 4 + 1)
    buckets = list(_buckets([*small[:2], half, large, *small[2:]]))
    assert [[one.numel() for one in bucket] for bucket in buckets] == [[7], [1000] * 2, [large.numel()], [1000] * 3]
    assert all(one.data_ptr() == other.data_ptr() for one, other in zip(buckets[3], small[2:], strict=True))
    assert list(_buckets([])) == []


def test_buckets_are_full():
    gradients = [torch.zeros(BUCKET_BYTES // 16) for _ in range(9)]  # four to a bucket
    assert [len(bucket) for bucket in _buckets(gradients)] == [4, 4, 1]
