"""What Linux says about the processes of a test: descendants, groups, sockets."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["descendants", "exists", "listening_addresses", "state_of", "waited_for_a_processor"]

_LISTEN = "0A"


def descendants(pid: int) -> set[int]:
    """Return the children of *pid*, their children, and so on."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name, in parentheses, may contain anything; what follows it is numbers.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        new = children.get(waiting.pop(), [])
        found.update(new)
        waiting.extend(new)
    return found


def exists(pid: int) -> bool:
    """Return whether *pid* runs; a process that ended and was not waited for does not."""
    return state_of(pid) not in {"", "Z"}


def state_of(pid: int) -> str:
    """Return the letter of a process's state, as T for a stopped one; nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def waited_for_a_processor(pid: int) -> float:
    """Return for how many seconds the main thread of *pid* could run and did not, because others did."""
    try:
        _, waiting_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except FileNotFoundError:  # A kernel that does not count.
        return 0.0
    return int(waiting_ns) / 1e9


def listening_addresses(pids: set[int]) -> set[str]:
    """Return the addresses, without ports, on which any of *pids* accepts TCP connections."""
    inodes = {inode for pid in pids for inode in _sockets(pid)}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        lines = Path(table).read_text().splitlines()[1:] if Path(table).exists() else []
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in inodes:
                found.add(_readable(fields[1].partition(":")[0]))
    return found


def _sockets(pid: int) -> Iterator[str]:
    with suppress(FileNotFoundError, ProcessLookupError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    yield target[len("socket:[") : -1]


def _readable(address: str) -> str:
    """Turn the kernel's little-endian hexadecimal into dots; leave IPv6 as it is."""
    if len(address) > 8:
        return address
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))
