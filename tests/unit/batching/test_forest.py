"""The packed row: the example of its module by hand, and what holds for any sequences."""

from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.batching.forest import Path, forest_batch, pack

# p q c d e    p q c f    p q g h    p q c d e, as at the top of batching/forest.py
P, Q, C, D, E, F, G, H = range(1, 9)
EXAMPLE = [[P, Q, C, D, E], [P, Q, G, H], [P, Q, C, F], [P, Q, C, D, E]]

sequences = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=8)


def row(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict:
    return {
        "chosen_input_ids": np.array(prompt + chosen), "rejected_input_ids": np.array(prompt + rejected),
        "chosen_prompt_tokens": len(prompt), "rejected_prompt_tokens": len(prompt), "chosen_end": len(prompt + chosen),
        "rejected_end": len(prompt + rejected),
    }  # fmt: skip


def test_the_example_of_the_module():
    ids, rows_of, layout = pack([np.array(one) for one in EXAMPLE])
    assert ids.tolist() == [P, Q, C, D, E, F, G, H]
    assert layout.depth_T.tolist() == [0, 1, 2, 3, 4, 3, 2, 3]
    assert [rows.tolist() for rows in rows_of] == [[0, 1, 2, 3, 4], [0, 1, 6, 7], [0, 1, 2, 5], [0, 1, 2, 3, 4]]
    assert layout.paths == (Path(0, 5, (), 0), Path(5, 6, ((0, 3),), 3), Path(6, 8, ((0, 2),), 2))
    assert [path.depth for path in layout.paths] == [0, 3, 2]
    assert layout.subtree_end_T.tolist() == [8, 8, 6, 5, 5, 6, 8, 8]
    assert layout.key_row_K.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 0, 1, 6, 7]
    assert layout.query_ends_P.tolist() == [0, 5, 6, 8]
    assert layout.key_ends_P.tolist() == [0, 5, 9, 13]
    assert (layout.longest_path, layout.longest_keys) == (5, 5)


def test_who_attends_to_whom_in_the_example():
    _, _, layout = pack([np.array(one) for one in EXAMPLE])
    expected = """
        x.......
        xx......
        xxx.....
        xxxx....
        xxxxx...
        xxx..x..
        xx....x.
        xx....xx
    """
    drawn = ["".join("x" if seen else "." for seen in line) for line in layout.ancestor_mask()]
    assert drawn == expected.split()
    # A window counts depth, not rows: h sees g and q, which stand six rows apart.
    assert layout.ancestor_mask(3)[7].nonzero().flatten().tolist() == [1, 6, 7]
    assert layout.ancestor_mask(1).equal(torch.eye(8, dtype=torch.bool))


def test_a_sequence_that_goes_on_where_another_ends_makes_no_new_path():
    ids, rows_of, layout = pack([np.array([1, 2, 3, 4]), np.array([1, 2])])
    assert ids.tolist() == [1, 2, 3, 4]
    assert rows_of[1].tolist() == [0, 1]
    assert layout.paths == (Path(0, 4, (), 0),)


def test_sequences_that_share_nothing_are_trees_of_their_own():
    ids, _, layout = pack([np.array([5, 6]), np.array([3, 4]), np.array([5, 6])])
    assert ids.tolist() == [3, 4, 5, 6]
    assert layout.depth_T.tolist() == [0, 1, 0, 1]
    assert layout.paths == (Path(0, 2, (), 0), Path(2, 4, (), 0))


@given(sequences)
def test_the_row_is_the_trie_of_its_sequences(sequences):
    ids, rows_of, layout = pack([np.array(one) for one in sequences])
    prefixes = {tuple(one[:n]) for one in sequences for n in range(1, len(one) + 1)}
    assert len(ids) == len(prefixes)
    seen = layout.ancestor_mask()
    for sequence, rows in zip(sequences, rows_of, strict=True):
        assert ids[rows].tolist() == sequence
        assert layout.depth_T[rows].tolist() == list(range(len(sequence)))
        assert (np.diff(rows) > 0).all()
        # A token sees its own sequence up to itself, and nothing else.
        for n, position in enumerate(rows, start=1):
            assert seen[position].nonzero().flatten().tolist() == rows[:n].tolist()


@given(sequences)
def test_paths_and_their_keys_say_what_the_mask_says(sequences):
    """Query i of a path sees the first depth + i + 1 of its keys: aligned at the bottom right."""
    _, _, layout = pack([np.array(one) for one in sequences])
    seen = layout.ancestor_mask()
    assert [(path.start, path.end) for path in layout.paths] == list(pairwise(layout.query_ends_P.tolist()))
    for number, path in enumerate(layout.paths):
        keys = layout.key_row_K[layout.key_ends_P[number] : layout.key_ends_P[number + 1]]
        assert keys.tolist() == [r for run in (*path.ancestors, (path.start, path.end)) for r in range(*run)]
        assert len(keys) == path.depth + path.end - path.start
        for i, position in enumerate(range(path.start, path.end)):
            assert seen[position].nonzero().flatten().tolist() == keys[: path.depth + i + 1].tolist()
    assert layout.longest_path == max(path.end - path.start for path in layout.paths)
    assert layout.longest_keys == max(path.depth + path.end - path.start for path in layout.paths)
    assert len(layout.key_row_K) <= sum(map(len, sequences))


def test_a_branch_point_predicts_several_tokens():
    """Prompt 1 2; answers 3 4 and 3 5: the prompt is NLL target, the shared 3 is target of both answers once."""
    batch = forest_batch([row([1, 2], [3, 4], [3, 5])], "sequence")
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 3]]
    assert batch["position_E"].tolist() == [0, 1, 2, 2]
    assert batch["target_E"].tolist() == [2, 3, 4, 5]
    assert batch["response_entry_SL"].tolist() == [[1, 2], [1, 3]]
    assert batch["nll_entry_BL"].tolist() == [[0, 1, 2]]
    assert batch["response_tokens_S"].tolist() == [2, 2]
    assert batch["nll_tokens_B"].tolist() == [3]
    assert batch["tokens_B"].tolist() == [8]


def test_targets_of_the_response_alone_leave_the_prompt_out():
    batch = forest_batch([row([1, 2], [3, 4], [3, 5])], "response")
    assert batch["position_E"].tolist() == [1, 2, 2]
    assert batch["nll_entry_BL"].tolist() == [[0, 1]]
    assert batch["nll_tokens_B"].tolist() == [2]


def test_lists_of_entries_are_filled_up_with_their_number():
    batch = forest_batch([row([1], [2], [3, 4, 5]), row([1], [3, 4], [2])], "sequence")
    entries = len(batch["target_E"])
    assert batch["response_entry_SL"].shape == (4, 3)
    assert (batch["response_entry_SL"] == entries).sum() == 2 + 1 + 0 + 2
    assert entries == 4  # 1 -> 2, 1 -> 3, 3 -> 4, 4 -> 5, each once for all that predict it


@pytest.mark.parametrize("nll_on", ["sequence", "response"])
def test_without_a_prompt_the_first_token_is_never_a_target(nll_on):
    batch = forest_batch([row([], [3, 4], [3, 5, 6])], nll_on)
    assert batch["position_E"].tolist() == [0, 0, 2]
    assert batch["response_tokens_S"].tolist() == [1, 2]
    assert batch["nll_tokens_B"].tolist() == [1]


def test_what_follows_the_end_of_the_turn_is_left_out():
    one = row([1], [2, 3], [4])
    batch = forest_batch([one | {"chosen_end": 2}], "sequence")
    assert batch["input_ids"].tolist() == [[1, 2, 4]]
    assert batch["tokens_B"].tolist() == [4]


def test_the_places_of_an_entry_lead_back_from_the_lists():
    """Prompt 1 2; answers 3 4 and 3 5: entry 1, the shared 3, stands first in both answers (places 0 and 2 of 4)."""
    batch = forest_batch([row([1, 2], [3, 4], [3, 5])], "sequence")
    assert batch["response_place_ME"].tolist() == [[4, 0, 1, 3], [4, 2, 4, 4]]
    assert batch["nll_place_ME"].tolist() == [[0, 1, 2, 3]]


pairs = st.lists(
    st.tuples(*(st.lists(st.integers(1, 3), min_size=least, max_size=5) for least in (1, 1, 1))), min_size=1, max_size=5
)


@given(pairs, st.sampled_from(["sequence", "response"]))
def test_the_entries_of_a_response_are_its_tokens_each_after_the_one_before(pairs, nll_on):
    rows = [row(*pair) for pair in pairs]
    batch = forest_batch(rows, nll_on)
    ids = batch["input_ids"][0]
    assert (batch["position_E"].diff() >= 0).all()
    assert len({*zip(batch["position_E"].tolist(), batch["target_E"].tolist(), strict=True)}) == len(batch["target_E"])

    def check(entries: torch.Tensor, count: int, sequence: np.ndarray, first: int) -> None:
        entries = entries[:count]
        assert batch["target_E"][entries].tolist() == sequence[first:].tolist()
        assert ids[batch["position_E"][entries]].tolist() == sequence[first - 1 : -1].tolist()
        positions = batch["position_ids"][0, batch["position_E"][entries]].tolist()
        assert positions == list(range(first - 1, len(sequence) - 1))

    for b, one in enumerate(rows):
        prompt = one["chosen_prompt_tokens"]
        for s, side in ((b, "chosen"), (b + len(rows), "rejected")):
            check(batch["response_entry_SL"][s], batch["response_tokens_S"][s], one[f"{side}_input_ids"], prompt)
        first = 1 if nll_on == "sequence" else prompt
        check(batch["nll_entry_BL"][b], batch["nll_tokens_B"][b], one["chosen_input_ids"], first)


def test_moving_a_layout_keeps_its_paths():
    _, _, layout = pack([np.array(one) for one in EXAMPLE])
    moved = layout.to(torch.device("cpu"))
    assert moved.paths is layout.paths
    assert moved.ancestor_mask().equal(layout.ancestor_mask())
    assert list(accumulate(path.end - path.start for path in moved.paths)) == layout.query_ends_P[1:].tolist()


@given(pairs, st.sampled_from(["sequence", "response"]))
def test_every_place_of_an_entry_is_listed_once(pairs, nll_on):
    batch = forest_batch([row(*pair) for pair in pairs], nll_on)
    for lists, places in (("response_entry_SL", "response_place_ME"), ("nll_entry_BL", "nll_place_ME")):
        entries = batch[lists].flatten()
        for entry, of_entry in enumerate(batch[places].T):
            found = of_entry[of_entry < len(entries)]
            assert found.tolist() == (entries == entry).nonzero().flatten().tolist()
            assert (of_entry[len(found) :] == len(entries)).all()
