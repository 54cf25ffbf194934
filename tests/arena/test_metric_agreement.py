import numpy as np
import pytest
from made_votes import MODELS, PROMPTS, evaluation, line, pictures, vote

from neighbor_grpo.arena.evaluations import read_evaluations
from neighbor_grpo.arena.metrics import metric_agreement
from neighbor_grpo.errors import UserError

BASE, OURS = [[1.0, 2.0], [3.0, None], [5.0, 6.0]], [[2.0, 1.0], [9.0, 9.0], [5.0, 7.0]]


@pytest.fixture
def folders(tmp_path):
    found = [pictures(tmp_path / name, 90 * n) for n, name in enumerate(MODELS)]
    evaluation(found[0], BASE, [0.1, 0.2, 0.3])
    evaluation(found[1], OURS, [0.1, 0.1, 0.4])
    return found


def read(folders, *given):
    entries = given or [f"{name}={folder}" for name, folder in zip(MODELS, folders, strict=True)]
    return read_evaluations(list(entries), MODELS, PROMPTS, [2, 2, 2])


def test_the_values_of_an_evaluation_are_read(folders):
    base, ours = read(folders)
    assert list(base) == ["judge", "diversity"]  # not the one of all prompts together
    np.testing.assert_array_equal(base["judge"], np.array(BASE, dtype=float))
    np.testing.assert_array_equal(ours["judge"], OURS)
    np.testing.assert_array_equal(base["diversity"], [[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])


def test_an_evaluation_that_evaluate_wrote_is_read(tmp_path):
    """The real ledger and the real name of a scorer."""
    from neighbor_grpo.files.ledger import Ledger, Values, short_hash

    folder = evaluation_with(pictures(tmp_path / "a", 0))
    (folder / "scores-0.jsonl").unlink()
    ledger = Ledger(folder)
    for n in range(3):
        ledger.write("judge", short_hash({"strict": True, "class": "Judge"}), n, Values((float(n), None), {1: "no view"}))
        ledger.write("diversity", "", n, Values((0.5,)))
    (found,) = read_evaluations([f"a={folder}"], ["a"], PROMPTS, [2, 2, 2])
    np.testing.assert_array_equal(found["judge"], [[0, np.nan], [1, np.nan], [2, np.nan]])


def evaluation_with(folder):
    evaluation(folder, BASE, [0.1, 0.2, 0.3])
    return folder


def test_agreement_is_the_share_of_winners_with_the_higher_value(folders):
    votes = [
        vote("ann", "right"),  # ours, 2 > 1
        vote("ann", "right", seed=1),  # ours, 1 < 2
        vote("ann", "left", "ours", "base", prompt=1),  # ours, 9 > 3
        vote("ann", "right", prompt=1, seed=1),  # the base has no value
        vote("bob", "left", prompt=2),  # 5 = 5
        vote("bob", "tie", prompt=2, seed=1),
        vote("bob", "bad", prompt=0),
    ]
    found = metric_agreement("judge", read(folders), votes, MODELS)
    assert found.votes == 4 and found.share.value == (1 + 0 + 1 + 0.5) / 4
    # by prompt, base against ours: people 0, 0, 0.75; mean values 0, -6, -0.5; of the pairs of prompts one is tied for people,
    # one agrees, one disagrees
    assert found.kendall == pytest.approx(0) and found.spearman == pytest.approx(0)


def test_correlations_are_over_prompts(folders):
    votes = [vote("ann", "left"), vote("ann", "right", prompt=1), vote("ann", "tie", prompt=2)]
    found = metric_agreement("judge", read(folders), votes, MODELS)
    assert found.kendall == pytest.approx(1) and found.spearman == pytest.approx(1)  # 1, 0, 0.5 and 0, -6, -0.5
    alike = metric_agreement("judge", read(folders), [vote("ann", "left")], MODELS)
    assert alike.kendall is alike.spearman is None


def test_without_votes_there_is_no_agreement(folders):
    assert metric_agreement("judge", read(folders), [], MODELS).share is None


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (["base={0}"], "ours=DIR is missing"),
        (["base={0}", "base={0}", "ours={1}"], "once for each"),
        (["third={0}"], "once for each of base, ours"),
        (["base={0}/pictures", "ours={1}"], "give the --out directory"),
    ],
)
def test_what_is_no_evaluation_is_refused(folders, given, remedy):
    with pytest.raises(UserError, match=remedy):
        read(folders, *(entry.format(*folders) for entry in given))


def test_an_evaluation_of_other_pictures_is_refused(folders):
    entries = [f"{name}={folder}" for name, folder in zip(MODELS, folders, strict=True)]
    for prompts, seeds, said in (
        (PROMPTS[:2], [2, 2], "3 prompts"),
        (("a red ball", *PROMPTS[1:]), [2, 2, 2], "prompt 0"),
        (PROMPTS, [2, 2, 1], "2 pictures of prompt 2"),
    ):
        with pytest.raises(UserError, match=said):
            read_evaluations(entries, MODELS, prompts, seeds)


def test_a_damaged_line_is_not_taken_for_a_value(folders):
    file = folders[1] / "scores-0.jsonl"
    file.write_text(file.read_text().replace("[2.0, 1.0]", "[2.0, 8.0]"))
    with pytest.raises(UserError, match="evaluate again"):
        read(folders)
    file.write_text(line("other", "", 0, [1.0]))
    with pytest.raises(UserError, match="evaluate again"):
        read(folders)
