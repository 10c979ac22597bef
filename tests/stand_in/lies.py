"""What STAND_IN_LIES asks for: ways in which a build, honest or not, differs from the common one."""

import os
import time

KNOWN = (
    "scaled subgraphs no_quant schema renamed reach extra unknown bad_scales half_json half_axmodel term unfused "
    "gemm_renamed constants16 llm_nothing llm_truncated llm_prefix no_llm_build2 timestamp owner mix_breaks calibrate"
)


def lies():
    """The switches as a dict: "scaled=100,renamed" is {"scaled": "100", "renamed": "1"}."""
    pairs = [part.strip().partition("=") for part in os.environ.get("STAND_IN_LIES", "").split(",") if part.strip()]
    found = {name: value or "1" for name, _, value in pairs}
    if wrong := set(found) - set(KNOWN.split()):
        raise SystemExit(f"stand-in: STAND_IN_LIES has no {sorted(wrong)}; known: {KNOWN}")
    return found


def lie(name):
    return lies().get(name)


def version():
    text = os.environ.get("STAND_IN_VERSION", "0.0-stand-in")
    return f"{text} {time.time_ns()}" if lie("timestamp") else text


def give_away(*paths):
    """Gives the files and everything in the directories to the user that `owner` names; root alone can."""
    if not (owner := lie("owner")) or os.getuid():
        return
    for path in paths:
        inside = [os.path.join(base, name) for base, folders, names in os.walk(path) for name in [*folders, *names]]
        for name in [path, *inside]:
            os.chown(name, int(owner), int(owner), follow_symlinks=False)
