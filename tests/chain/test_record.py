"""steps.json: one entry a step, in the order of the run."""

from dataclasses import replace

from qwen_vl_axera.chain.record import StepCost, add_step, read_steps

COST = StepCost("capture", 1.5, 10**9, 0, ["python", "run.py"], skipped=False)


def test_a_step_replaces_its_earlier_entry(tmp_path):
    path = tmp_path / "steps.json"
    path.write_text("[{}]")  # no such file: written anew
    other = replace(COST, name="export", returncode=-9)
    for cost in (COST, other, replace(COST, skipped=True)):
        add_step(path, cost)
    assert read_steps(path) == [other, replace(COST, skipped=True)]
