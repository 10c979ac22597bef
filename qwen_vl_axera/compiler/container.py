"""Pulsar2 in a Docker container: what is mounted where, and who owns what comes out.

The work directory becomes /work, everything else /mnt/0, /mnt/1 ...: hostile names never reach the tool, and a
host directory never hides one of the image. Files that a configuration names are mounted where the tool will
look for them. Inputs are read-only. The tool runs as root; what it writes is handed back to the caller, and so is
what an earlier container has left to root in the same directories.
"""

import hashlib
import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from qwen_vl_axera.errors import InputError

WORK = "/work"
NAMES = "qwen-vl-axera-"  # how the names of containers that build begin
INTO_CONTAINER = ("FLOAT_MATMUL_USE_CONV_EU",)  # of the environment: the manual sets it for language models
FLAGS = "DOCKER_FLAGS"  # words for `docker run`: --gpus all, a licence file
PASSED_ON = (*INTO_CONTAINER, FLAGS)  # the variables that a build depends on
LINKS = 40  # that are followed to a file, as Linux does

# Arguments: $0 the caller as uid:gid (empty: hand nothing back), pairs of a directory's owner on the host and
# the directory, "--", the command. The tool's exit code is kept. A signal to the container ends the tool and
# still hands over. Where the container sees another owner than the host does (rootless Docker, user namespaces),
# root inside is the caller outside already, and a chown would give the files away.
HAND_BACK = " ".join(
    (
        'made=(); while [ "$1" != -- ]; do made+=("$1" "$2"); shift 2; done; shift;',
        "\"$@\" & child=$!; trap 'kill -TERM $child 2>/dev/null' INT TERM HUP;",
        "wait $child; code=$?; while kill -0 $child 2>/dev/null; do wait $child; code=$?; done;",
        'set -- "${made[@]}"; while [ -n "$0" ] && [ $# -gt 0 ]; do',
        '[ "$(stat -c %u -- "$2")" = "$1" ] && find "$2" -user 0 -exec chown -h "$0" {} +; shift 2; done;',
        "exit $code",
    )
)


class Mounts:
    """Host paths and their places in the container.

    Args:
        workdir: the directory that becomes /work, writable; None: /work is the container's own.
    """

    def __init__(self, workdir: Path | None):
        self.workdir = Path(workdir).resolve() if workdir is not None else None
        self.places: dict[str, tuple[str, bool]] = {}  # place -> path on the host, writable
        if self.workdir:
            self.places[WORK] = (str(self.workdir), True)

    def directory(self, path: Path, writable: bool = False) -> str:
        """The place of a directory, mounted when it is not below the work directory.

        Links inside that lead elsewhere (a hub cache keeps its weights in ../../blobs) stay readable: what
        holds both ends is mounted.

        Raises:
            InputError: the links lead so far away that the whole file system would have to be mounted.
        """
        host = Path(path).resolve()
        if self._in_workdir(host):
            inside = posixpath.normpath(f"{WORK}/{host.relative_to(self.workdir).as_posix()}")
        else:
            relative, _ = _links(host)
            root = Path(os.path.commonpath([host, *relative]))
            if root == Path(root.anchor):
                raise InputError(f"{path}: its links lead all over the file system; copy the files together")
            place = next((p for p, mounted in self.places.items() if mounted == (str(root), writable)), None)
            place = place or self._mount(root, writable)
            inside = posixpath.normpath(f"{place}/{host.relative_to(root).as_posix()}")
        self._mount_links(host, inside)
        return inside

    def graph(self, path: Path) -> str:
        """The place of a graph; its whole directory is mounted, since the weights lie beside it."""
        return f"{self.directory(Path(path).parent)}/{Path(path).name}"

    def file(self, path: Path) -> str:
        """The place of a single file."""
        host = Path(path).resolve()
        if self._in_workdir(host):
            return f"{WORK}/{host.relative_to(self.workdir).as_posix()}"
        return self._mount(host, False)

    def named_in_config(self, named: str) -> None:
        """Mounts a file that a configuration names, where the tool will look: relative to the work directory."""
        host = self.workdir / named
        place = self._behind_links(posixpath.normpath(posixpath.join(WORK, named)))
        if not place.startswith(f"{WORK}/") and host.exists():
            self.places.setdefault(place, (str(host.resolve()), False))

    def _behind_links(self, place: str) -> str:
        """Where the links of the work directory lead that stand on the way to a place, as seen in the container."""
        for _ in range(LINKS):
            if not place.startswith(f"{WORK}/"):
                break
            parts = place.removeprefix(f"{WORK}/").split("/")
            ways = ["/".join(parts[: end + 1]) for end in range(len(parts))]
            end = next((end for end, way in enumerate(ways) if (self.workdir / way).is_symlink()), None)
            if end is None:
                break
            target = (self.workdir / ways[end]).readlink()
            place = posixpath.normpath(posixpath.join(WORK, *parts[:end], str(target), *parts[end + 1 :]))
        return place

    def _in_workdir(self, host: Path) -> bool:
        return self.workdir is not None and host.is_relative_to(self.workdir)

    def _mount(self, host: Path, writable: bool) -> str:
        place = f"/mnt/{len(self.places) - (WORK in self.places)}"
        if host.is_file():
            place += "/" + re.sub(r"[^A-Za-z0-9._-]", "_", host.name)
        self.places[place] = (str(host), writable)
        return place

    def _mount_links(self, host: Path, inside: str) -> None:
        """Files behind absolute links, at the same path as outside; and relative ones that leave the mount."""
        relative, absolute = _links(host)
        for target in absolute:
            self.places.setdefault(str(target), (str(target.resolve()), False))
        if self._in_workdir(host):
            for target in relative:
                if not target.is_relative_to(self.workdir):
                    place = posixpath.normpath(posixpath.join(inside, os.path.relpath(target, host)))
                    self.places.setdefault(place, (str(target.resolve()), False))

    def arguments(self) -> list[str]:
        """The `--mount` arguments of `docker run`. Unlike -v they take colons, and never make a missing directory."""
        result = []
        for place, (host, writable) in self.places.items():
            fields = ["type=bind", f"source={host}", f"target={place}", *([] if writable else ["readonly"])]
            result += ["--mount", ",".join(_csv(field) for field in fields)]
        return result


def docker_argv(image: str, mounts: Mounts, command: Sequence[str], made: Iterable[Path] = ()) -> list[str]:
    """`docker run` around a command.

    Args:
        image: name and tag; never pulled, since it comes from the vendor's archive through `docker load`.
        mounts: filled.
        command: to be run inside, paths translated.
        made: directories on the host whose files of root's the caller shall own afterwards.

    Raises:
        InputError: DOCKER_FLAGS are no options.
    """
    user = os.getuid()
    made, pairs = list(made), []
    for directory in made:
        owner = directory.stat().st_uid if directory.exists() else user
        pairs += [str(owner), mounts.directory(directory, writable=True)]
    # The same directory, the same name: Docker itself refuses a second container that would write the same files.
    place = mounts.workdir or [*made, ""][0]
    name = NAMES + hashlib.sha256(str(place).encode()).hexdigest()[:12]
    return [
        *("docker", "run", "--rm", "--pull=never"),
        *(["--name", name] if pairs else []),
        *mounts.arguments(),
        *("--workdir", WORK),
        *(word for name in INTO_CONTAINER for word in ("--env", name)),  # where it is set
        *docker_flags(),
        *("--entrypoint", "bash", image, "-c", HAND_BACK),
        *(f"{user}:{os.getgid()}" if user else "", *pairs, "--", *command),
    ]


def docker_flags() -> list[str]:
    """The words of DOCKER_FLAGS, as a shell reads them.

    Raises:
        InputError: a quote is not closed, or they do not begin with an option: Docker would take it for the image.
    """
    text = os.environ.get(FLAGS, "")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{FLAGS}={text}: expected words as a shell reads them ({error})") from None
    if words and (not words[0].startswith("-") or "--" in words):
        raise InputError(f"{FLAGS}={text}: expected options of docker run, for example --gpus all")
    return words


def _links(directory: Path) -> tuple[list[Path], list[Path]]:
    """Where a directory's links lead: those written relative, and those written absolute (existing ones)."""
    relative, absolute = [], []
    for entry in sorted(directory.iterdir()) if directory.is_dir() else []:
        if entry.is_symlink() and entry.exists():
            target = entry.readlink()
            (absolute if target.is_absolute() else relative).append(Path(os.path.normpath(directory / target)))
    return relative, absolute


def _csv(field: str) -> str:
    """A field of --mount, which is read as CSV."""
    return '"' + field.replace('"', '""') + '"' if any(mark in field for mark in ',"\n') else field
