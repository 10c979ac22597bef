"""How checks are run and shown."""

from qwen_vl_axera.preflight.checks import Check, guarded, table


def test_an_unforeseen_malformation_ends_in_the_table():
    def check():
        yield Check("first", "ok", "")
        raise KeyError("size")

    first, second = guarded("graph", "export again", check)
    assert (first.status, second.status) == ("ok", "failed")
    assert "KeyError" in second.detail and second.remedy == "export again"
    assert "FAILED  graph" in table([second]) and "-> export again" in table([second])
