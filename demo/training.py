"""How the demo model is trained: packed questions, the losses, the loop.

A question sees the clip and itself, none of the other three behind the same clip, and each starts at the
same position, so one row teaches what four separate prompts would at little more than the cost of one.
The loss counts the answers' tokens only. Two aids are thrown away afterwards: a head in front of the
full-attention block from which each patch tells what object is centred in its own window, and the
random dropping of merged tokens. Without them the model hardly uses window attention.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from demo import network as demo_network
from demo.batches import IGNORED, Batches, Prompts
from demo.clips import COLOURS, KINDS, SHAPES
from demo.network import STEPS, TOKENS, WINDOW, DemoNetwork
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write
from qwen_vl_axera.progress import stage

VALIDATION_FIRST = 200_000  # numbers of unseen clips that only the training log looks at


@dataclass(frozen=True)
class Settings:
    """Everything that decides what comes out, besides the number of threads."""

    steps: int = 4500
    batch: int = 16
    seed: int = 0
    peak_rate: float = 1.5e-3
    warm_up: int = 150
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    aux_weight: float = 0.5
    drop_share: float = 0.5  # of the steps drop tokens ...
    drop_until: float = 0.8  # ... up to this part of the schedule
    save_every: int = 250


class WindowHead(nn.Module):
    """From each patch: is an object centred in my window, its colour, its shape, where its edges are."""

    def __init__(self):
        super().__init__()
        self.parts = [1, len(COLOURS), len(SHAPES), 4 * demo_network.SLOTS]
        self.head = nn.Linear(demo_network.VISION["hidden"], sum(self.parts))
        order, _ = demo_network.window_order()
        index = (torch.tensor(order)[:, None] * demo_network.MERGE**2 + torch.arange(demo_network.MERGE**2)).flatten()
        self.centres = (demo_network.patch_grid()[index] + 0.5).flip(-1) * demo_network.PATCH  # (144, 2): x, y

    def forward(self, inside: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        present, colour, shape, edges = self.head(inside).float().split(self.parts, -1)
        boxes = batch["boxes"].view(len(inside), demo_network.SLOTS, 4)
        middle = (boxes[:, -1, :2] + boxes[:, -1, 2:]) / 2  # in the later frame of the step
        mine = ((middle[:, None] // WINDOW) == (self.centres // WINDOW)).all(-1)  # (B · T, 144)
        loss = F.binary_cross_entropy_with_logits(present[..., 0], mine.float())
        for scores, target in ((colour, batch["colour"]), (shape, batch["shape"])):
            target = target.repeat_interleave(STEPS)[:, None].expand(-1, mine.shape[1])
            loss = loss + F.cross_entropy(scores[mine], target[mine])
        offsets = (boxes[:, None] - self.centres.repeat(1, 2)[None, :, None]) / WINDOW
        return loss + 2 * F.l1_loss(edges.unflatten(-1, (-1, 4))[mine], offsets[mine])


def packed_mask(prefix: int, segments: int, length: int) -> torch.Tensor:
    """Additive block-causal mask (L, L): a question sees the prefix and itself."""
    owner = torch.cat([torch.zeros(prefix), torch.arange(segments).repeat_interleave(length) + 1])
    seen = ((owner[:, None] == owner) | (owner == 0)).tril()
    return torch.zeros(len(owner), len(owner)).masked_fill(~seen, -1e4)


def answer_logits(
    network: DemoNetwork,
    prompts: Prompts,
    features: torch.Tensor,
    ids: torch.Tensor,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits (B, segments, S, vocabulary) of the packed questions behind a clip.

    Args:
        features: merged tokens (B, 144, 128).
        ids: the segments' tokens (B, segments, S).
        kept: int64 (B, K), the merged tokens that stay, sorted; None for all.
    """
    batch, segments, length = ids.shape
    before = prompts.before
    positions = torch.from_numpy(prompts.positions).expand(-1, batch, -1)
    video = positions[:, :, before:-1]
    if kept is not None:
        features = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
        video = video.gather(2, kept.expand(3, -1, -1))
    tail = (prompts.next_position + torch.arange(length)).repeat(segments).expand(3, batch, -1)
    position_ids = torch.cat([positions[:, :, :before], video, positions[:, :, -1:], tail], -1)
    prefix = torch.from_numpy(prompts.prefix)
    embedded = network.model.embed_tokens(torch.cat([prefix[:before], prefix[-1:]]))
    embedded = embedded.expand(batch, -1, -1)
    text = network.model.embed_tokens(ids.flatten(1))
    x = torch.cat([embedded[:, :-1], features.float(), embedded[:, -1:], text], 1)
    mask = packed_mask(x.shape[1] - segments * length, segments, length)
    hidden = network.model(x, position_ids, mask)
    return network.logits(hidden[:, -segments * length :]).unflatten(1, (segments, length))


def train(
    settings: Settings,
    prompts: Prompts,
    vocab_size: int,
    work: Path,
    resume: bool = False,
    stop: int | None = None,
) -> tuple[DemoNetwork, int]:
    """Trains from nothing, or from the last saved step.

    Args:
        work: directory of `checkpoint.pt` and `log.jsonl`.
        resume: continue from `checkpoint.pt` where there is one.
        stop: end after this step of the schedule instead of its last.

    Returns:
        The network and the number of steps that it has been trained for.

    Raises:
        InputError: there is a checkpoint and `resume` is False, or it was made with other settings.
    """
    network, head = DemoNetwork(vocab_size), WindowHead()
    network.initialise(settings.seed)
    torch.manual_seed(settings.seed)
    head.head.reset_parameters()
    trained = nn.ModuleDict({"network": network, "head": head})
    decayed = [parameter for parameter in trained.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in trained.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay, foreach=True
    )
    start = _load(work / "checkpoint.pt", settings, trained, optimizer, resume)
    # A checkpoint beyond `stop` is taken as it is.
    stop = max(start, min(stop or settings.steps, settings.steps))

    loader = torch.utils.data.DataLoader(
        Batches(prompts, "train", settings.batch, settings.seed),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=1,
    )
    earlier = [line for line in read_log(work) if line["step"] <= start]
    began = time.monotonic() - (earlier[-1]["seconds"] if start and earlier else 0)
    with stage("training", stop - start, unit="step") as bar, open(work / "log.jsonl", "a") as log:
        for step, batch in enumerate(loader, start):
            for group in optimizer.param_groups:
                group["lr"] = settings.peak_rate * schedule(step, settings)
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
            kept = _kept(step, settings, generator)
            with torch.autocast("cpu", torch.bfloat16):
                features, inside = network.visual(demo_network.patches(batch["frames"]))
                logits = answer_logits(network, prompts, features, batch["ids"], kept)
                aux = head(inside, batch)
            answers = F.cross_entropy(logits.float().flatten(0, 2), batch["following"].flatten(), ignore_index=IGNORED)
            optimizer.zero_grad()
            (answers + settings.aux_weight * aux).backward()
            nn.utils.clip_grad_norm_(trained.parameters(), settings.clip_norm)
            optimizer.step()
            bar.advance()
            done = step + 1
            saving = done % settings.save_every == 0 or done == stop
            if done % 50 == 0 or saving:
                line = {
                    "step": done,
                    "seconds": time.monotonic() - began,
                    "loss": answers.item(),
                    "aux": aux.item(),
                }
                if saving:
                    line |= validate(network, prompts, settings)
                    _save(work / "checkpoint.pt", settings, done, trained, optimizer)
                log.write(json.dumps(line) + "\n")
                log.flush()
    return network, stop


def read_log(work: Path) -> list[dict[str, float]]:
    """The lines of the training log: step, seconds since the start of training, losses, accuracies."""
    path = work / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def schedule(step: int, settings: Settings) -> float:
    """The learning rate as a part of its peak: linear warm-up, then half a cosine down to zero."""
    warm = (step + 1) / settings.warm_up
    return min(warm, 0.5 + 0.5 * math.cos(math.pi * step / settings.steps))


def _kept(step: int, settings: Settings, generator: torch.Generator) -> torch.Tensor | None:
    """The merged tokens that a step keeps, (B, K) sorted, or None for all of them."""
    share, amount = torch.rand(2, generator=generator).tolist()
    if share >= settings.drop_share or step >= settings.drop_until * settings.steps:
        return None
    count = STEPS * TOKENS
    kept = int(count * (0.9 - 0.4 * amount))  # between a half and nine tenths
    order = torch.rand(settings.batch, count, generator=generator).argsort(1)
    return order[:, :kept].sort(1).values


@torch.no_grad()
def validate(network: DemoNetwork, prompts: Prompts, settings: Settings, batches: int = 6) -> dict[str, float]:
    """Share of right answers per kind on a few unseen clips, each token given the true ones before."""
    data = Batches(prompts, "test", settings.batch, settings.seed, VALIDATION_FIRST)
    right = []
    for number in range(batches):
        batch = data[number]
        with torch.autocast("cpu", torch.bfloat16):
            features, _ = network.visual(demo_network.patches(batch["frames"]))
            said = answer_logits(network, prompts, features, batch["ids"]).argmax(-1)
        right.append(((said == batch["following"]) | (batch["following"] == IGNORED)).all(-1))
    return dict(zip(KINDS, torch.cat(right).float().mean(0).tolist(), strict=True))


def _save(path: Path, settings: Settings, step: int, trained: nn.Module, optimizer) -> None:
    state = {"step": step, "trained": trained.state_dict(), "optimizer": optimizer.state_dict()}
    with atomic_write(path) as file:
        torch.save(state | {"settings": asdict(settings)}, file)


def _load(path: Path, settings: Settings, trained: nn.Module, optimizer, resume: bool) -> int:
    """Restores the last saved state, if any, and returns the number of steps done."""
    if not path.is_file():
        return 0
    if not resume:
        raise InputError(f"{path} is there from an earlier run: continue with --resume, or remove its directory")
    state = torch.load(path, weights_only=True)
    if state["settings"] != asdict(settings):
        raise InputError(f"{path} was made with other settings ({state['settings']}): give those, or remove it")
    trained.load_state_dict(state["trained"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
