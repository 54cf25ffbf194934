"""The paper's tables beside ours: what is compared, and when a claim holds."""

import json

import paper

from neighbor_grpo.compare.settings import read_comparison


def test_a_table_has_the_runs_of_its_comparison():
    assert list(paper.PRINTED) == [f"table_{n}" for n in range(1, 7)]
    for name, printed in paper.PRINTED.items():
        comparison, entries = read_comparison(f"paper/{name}")
        runs = [entry.name for entry in entries]
        assert [row for row in printed["rows"] if row != paper.BEFORE] == runs and comparison.run_dir == f"runs/paper/{name}"
        assert {len(row.split()) for row in printed["rows"].values()} == {len(printed["columns"])}
        for claim in printed["claims"]:
            assert claim.keys() == {"text", "paper", "measure", "more", "less"} and {claim["more"], claim["less"]} <= set(runs)


def test_a_claim_holds_where_the_interval_over_seeds_lies_above_zero(tmp_path):
    """Differences 2, 3, 4: mean 3, standard error 1/√3, t(0.975, 2) = 4.3027."""
    curves = {
        "a": {"score": [[0, 3], [0, 5], [0, 7]], "noisy": [[0, 1], [0, 9], [0, 2]], "evaluations": [[0, 10]] * 3},
        "b": {"score": [[0, 1], [0, 2], [0, 3]], "noisy": [[0, 2], [0, 1], [0, 1]], "evaluations": [[0, 10]] * 3},
    }
    table = [{"run": "a", "nfe": 14.0, "to_reach": 8.0}, {"run": "b", "nfe": 1.4, "to_reach": None}]
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"table": table, "curves": curves}))
    results = paper.Results(file)

    def verdict(measure, more="a", less="b"):
        return results.verdict({"measure": measure, "more": more, "less": less})

    one = {"score": [[0, 3]]}, {"score": [[0, 1]]}
    file.write_text(json.dumps({"table": table, "curves": dict(zip("ab", one, strict=True))}))
    claim = {"measure": "score", "more": "a", "less": "b"}
    assert paper.Results(file).verdict(claim) == ("3 against 1: +2, one seed", "undecided")
    assert verdict("score") == ("5 against 2: +3 (+0.52 to +5.5)", "**holds**")
    assert verdict("score", "b", "a")[1] == "**does not hold**" and verdict("noisy")[1] == "undecided"
    assert verdict("nfe") == ("14 against 1.4: 10 times", "**holds**") and verdict("nfe", "b", "a")[1] == "**does not hold**"
    assert verdict("to_reach", "b", "a") == ("not reached against 8", "**holds**") and verdict("score", "c")[1] == "not run"
    assert results.cell(paper.BEFORE, "score") == "0" and results.cell("a", "nothing") == ""
