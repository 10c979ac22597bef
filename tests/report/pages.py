"""A report read as a browser reads it, and what the tests of its parts share."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.report.page import write_report

HOSTILE = "<script>alert(1)<img src=x onerror=alert(1)>\"'&amp;猫"
SPOOFED = "gnp\u202e.exe\x1b[31m\x00"
ESCAPED = "gnp\\u202e.exe\\u001b[31m\\u0000"
SIZE = (140, 168)
LIMIT = 5_000_000  # bytes of the page for 8 frames
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements and the text of a page; refuses what is not well-formed."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.rows: list[list[str]] = []  # of tables: the texts of their data cells
        self.feed(html)
        self.close()
        self.rows = [row for row in self.rows if row]
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute of <{tag}> is given twice"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data
        if "td" in self.open:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def picture(self, alt: str) -> Image.Image:
        return decode(next(image["src"] for image in self.all("img") if image["alt"] == alt))


def decode(uri: str) -> Image.Image:
    head, data = uri.split(",", 1)
    assert head.startswith("data:image/") and head.endswith(";base64")
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    picture.load()
    return picture


def write(path: Path, value) -> None:
    path.write_text(json.dumps(value), "utf-8")


def change(path: Path, edit) -> None:
    value = json.loads(path.read_bytes())
    edit(value)
    write(path, value)


def append(path: Path, data: bytes) -> None:
    """Writes on at the end of a file."""
    path.write_bytes(path.read_bytes() + data)


def report(checkpoint: Checkpoint, workdir: Path) -> tuple[Page, dict[str, str]]:
    """The page, and the worst status of each section that the verdict names."""
    findings = write_report(checkpoint, workdir, workdir / "report.html")
    worst = {}
    for finding in findings:  # failures come first
        worst.setdefault(finding.anchor, finding.status)
    return Page((workdir / "report.html").read_text("utf-8")), worst
