"""`quantization.json`: what a preview found. Cosines and errors are of merged tokens against the float network."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from qwen_vl_axera.contract import QUANTIZATION
from qwen_vl_axera.files import read_record
from qwen_vl_axera.record import Amount, Count, Positive, Sha256, Text, record

MADE_BY = "preview_quantization.py"
MIXED = "mixed"  # the setting that a search found

Cosine = Annotated[float, Field(ge=-1.000001, le=1.000001)]
Share = Annotated[float, Field(ge=0, le=1)]


@record
class Assumption:
    """A rule of the simulation and how it is known: measured, compiled, the manual's, the vendor's, or inferred."""

    grade: Literal["M", "C", "D", "A", "inf"]
    rule: Text


@record
class Step:
    """One evaluated step; `token_cosines` in reading order, for a map over the frame."""

    mean_token_cosine: Cosine
    min_token_cosine: Cosine
    centred_cosine: Cosine
    relative_error: Amount
    token_cosines: list[Cosine]


@record
class Block:
    """What a block hands on: the residual stream after it, over its patches."""

    block: Count
    mean_token_cosine: Cosine
    min_token_cosine: Cosine
    centred_cosine: Cosine
    relative_error: Amount


@record
class Clipped:
    """Values beyond the calibrated range: the share of all, and the tensors with the largest shares."""

    share: Share
    worst: dict[str, Share]


@record
class Setting:
    """One simulated configuration.

    Attributes:
        name: of the setting.
        config: `quant.layer_configs`; None: weights in S8 and nothing else.
        mac8: share of all multiply-accumulates, of linear layers and attention, with 8-bit activations.
        border_bytes: of one step, written in another width than that of the operator that writes them.
        notes: what the configuration says and the compiler is believed not to do.
        relative_time: estimated bounds, relative to all at 16 bits; `Quantization.time` says from what.
        time_parts: what takes the time at the upper bound -> ms of a step.
    """

    name: Text
    config: list[dict[str, Any]] | None
    mac8: Share | None
    border_bytes: Count | None
    mean_token_cosine: Cosine
    min_token_cosine: Cosine
    centred_cosine: Cosine
    relative_error: Amount
    clipped: Clipped
    steps: list[Step]
    blocks: list[Block]
    notes: list[Text]
    relative_time: tuple[Amount, Amount] | None = None
    time_parts: dict[Text, Amount] | None = None


@record
class MassiveTokens:
    """After a block: the share of massive tokens, and the largest one's ratio to the median."""

    block: Count
    share: Share
    ratio: Amount


@record
class OutlierChannels:
    """After a block: how many channels stand out, and the largest one's ratio to the median."""

    block: Count
    channels: Count
    ratio: Amount


@record
class Spike:
    """A down_proj's input: its largest value, and that to its root mean square."""

    layer: Text
    largest: Amount
    ratio: Amount


@record
class LostMass:
    """A softmax at 8 bits: the mass that rounds to zero, and the share of such entries."""

    layer: Text
    lost_mass: Share
    zeros: Share


@record
class Finding:
    """Something hard to quantise, and what follows."""

    finding: Text
    remedy: Text


@record
class CensusFound:
    """The activations on the evaluation frames."""

    massive_tokens: list[MassiveTokens]
    outlier_channels: list[OutlierChannels]
    spikes: list[Spike]
    softmax: list[LostMass]
    findings: list[Finding]


@record
class Sensitivity:
    """Layers that read one tensor: what a token loses when they alone have 8 bits, and their arithmetic."""

    layers: list[Text]
    damage: float
    macs: Positive


@record
class Judged:
    """The mix's loss on clips that had no part in choosing it, and the interval of a bootstrap over them (90 %)."""

    clips: list[Text]
    steps: Positive
    loss: float
    low: float
    high: float


@record
class Searched:
    """The search.

    Attributes:
        target_loss: how far below the floor the mix may lie.
        reached: whether it does by the frames that chose it, and by those that judged it the upper bound.
        wide: the Gemms at 16 bits.
        sensitivity: every group of layers, the costliest first.
        macs: multiply-accumulates of a step, of linear layers and attention.
        judged: on other clips; None: all clips were needed to choose.
    """

    target_loss: Share
    reached: bool
    wide: list[Text]
    sensitivity: list[Sensitivity]
    macs: Positive
    judged: Judged | None = None


@record
class Quantization:
    """`quantization.json`.

    Attributes:
        assumptions: what the simulation takes for granted.
        graph: the file simulated.
        made_from: graph, weights, calibration archive and captured clip (where it judges) -> SHA-256.
        calibration: archive and number of samples.
        evaluation: clips, their steps, and how many of them were simulated.
        floor: weights in S8 alone.
        settings: the vendor's recipe, those given, and some to compare with.
        census: of the activations.
        notes: what to know about this run.
        time: what the estimates of time rest on.
        search: with --search.
        text: with --generate: [{"clip", "prompt", "answers": {setting: {"text", "equal"}}}].
    """

    assumptions: list[Assumption]
    graph: Text
    calibration: dict[str, Any]
    evaluation: dict[str, Any]
    floor: Setting
    settings: list[Setting]
    census: CensusFound
    notes: list[Text]
    time: Text | None = None
    search: Searched | None = None
    text: list[dict[str, Any]] | None = None
    made_from: dict[str, Sha256] = field(default_factory=dict)

    @property
    def setting_notes(self) -> list[str]:
        """The notes of each setting with its name, those of the mix first."""
        ordered = sorted(self.settings, key=lambda setting: setting.name != MIXED)
        return [f"{setting.name}: {note}" for setting in ordered for note in setting.notes]

    @property
    def mixed(self) -> Setting | None:
        """What the search found."""
        return next((setting for setting in self.settings if setting.name == MIXED), None)

    def loss(self, setting: Setting) -> float:
        """How far a setting lies below the floor, plain or centred, the larger: the rule of `losses.loss`."""
        names = ("mean_token_cosine", "centred_cosine")
        return max(getattr(self.floor, name) - getattr(setting, name) for name in names)


def read_quantization(workdir: Path) -> Quantization:
    """What the last preview in a work directory found.

    Raises:
        InputError: none has run there, or the file is not what it writes.
    """
    return read_record(Path(workdir) / QUANTIZATION, Quantization, MADE_BY)
