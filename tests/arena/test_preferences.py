import json

from made_votes import vote

from neighbor_grpo.arena.preferences import Preference, preferences, write

VOTES = [
    *(vote(rater, "right") for rater in ("ann", "bob")),
    vote("eve", "left"),
    vote("joe", "tie"),
    vote("ann", "left", prompt=1),
    vote("bob", "left", "ours", "base", prompt=1),  # a draw
    vote("ann", "bad", seed=1),
    vote("ann", "right", "ours", "base", prompt=2),
]


def test_the_majority_chooses_and_draws_are_left_out():
    found, left_out = preferences(VOTES)
    assert found == [Preference(0, 0, "ours", "base", 2, 1, 1), Preference(2, 0, "base", "ours", 1, 0, 0)] and left_out == 2


def test_the_folder_holds_all_it_names(tmp_path):
    files = {}
    for model in ("base", "ours"):
        for prompt in range(3):
            files[model, prompt, 0] = tmp_path / f"{model}{prompt}.PNG"
            files[model, prompt, 0].write_text(f"{model} {prompt}")
    file = write(tmp_path / "out", preferences(VOTES)[0], files, ["zero", "one", "zwei €"], ["x", None, None], "overall")
    (tmp_path / "out").rename(tmp_path / "moved")
    first, second = [json.loads(line) for line in (tmp_path / "moved" / file.name).read_text().splitlines()]
    assert (first["prompt"], second["prompt"], first["category"], second["category"]) == ("zero", "zwei €", "x", None)
    assert (first["votes_for"], first["votes_against"], first["undecided"], first["question"]) == (2, 1, 1, "overall")
    read = [(tmp_path / "moved" / row[side]).read_text() for row in (first, second) for side in ("chosen", "rejected")]
    assert read == ["ours 0", "base 0", "base 2", "ours 2"]
