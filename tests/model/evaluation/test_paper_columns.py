"""The paper's table columns, Avg^N and the spatial tasks, computed by hand."""

import pytest

from model.evaluation.paper_columns import summary

SCORES = {
    "mmbench": {
        "accuracy": 80.0,
        "circular": 70.0,
        "categories": {
            "spatial_relationship": {"accuracy": 90.0, "circular": 40.0},
            "object_localization": {"accuracy": 90.0, "circular": 50.0},
            "physical_relation": {"accuracy": 90.0, "circular": 60.0},
        },
    },
    "mme": {
        "perception": 1500.0,
        "perception_of": 2000,
        "total": 1850.0,
        "total_of": 2800,
        "tasks": {"position": {"score": 130.0}},
    },
    "seed_bench": {
        "accuracy": 65.0,
        "dimensions": {"spatial_relation": {"accuracy": 45.0}, "instance_location": {"accuracy": 55.0}},
    },
    "llava_bench": {"score": 68.0},
    "scienceqa": {"accuracy": 72.0, "accuracy_image": 69.0},
}


def test_columns_average_and_spatial_tasks():
    found = summary(SCORES)
    assert found["columns"]["MMB"] == {"value": 70.0, "of": 100.0}  # circular accuracy, as in the paper
    assert found["columns"]["MME"] == {"value": 1850.0, "of": 2800.0}
    assert found["columns"]["SQA"]["value"] == 72.0  # over all questions, as in the paper
    assert found["columns"]["SQA^I"]["value"] == 69.0
    assert found["average"]["over"] == ["MMB", "MME^P", "SEED^I", "LLaVA^W"]
    assert found["average"]["value"] == pytest.approx((70 + 75 + 65 + 68) / 4)
    assert found["spatial"]["tasks"]["MME position"] == 65.0
    assert found["spatial"]["average"] == pytest.approx((65 + 40 + 50 + 60 + 45 + 55) / 6)


def test_missing_scores_are_omitted_and_the_average_lists_its_columns():
    some = {name: scores for name, scores in SCORES.items() if name != "llava_bench"}
    found = summary({**some, "llava_bench": {"judge": "none"}, "settings": {"seed": 0}})
    assert "LLaVA^W" not in found["columns"]
    assert found["average"] == {"value": pytest.approx(70.0), "over": ["MMB", "MME^P", "SEED^I"]}
    without = {**SCORES, "mme": {**SCORES["mme"], "tasks": {}}}
    assert summary(without)["spatial"]["average"] is None
    assert summary({}) == {
        "columns": {},
        "average": {"value": None, "over": []},
        "spatial": {"tasks": {}, "average": None},
    }
    assert "MMB" not in summary({"mmbench": {"circular": None, "accuracy": 50.0}})["columns"]
