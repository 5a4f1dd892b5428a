"""Two hosts on this machine: network namespaces with a name and an address each, and a cable that can be cut."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness import ROOT

NAMES = ("left", "right")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
HOSTS = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in zip(NAMES, ADDRESSES, strict=True))


class CannotMakeHostsError(Exception):
    """This machine, or this user, cannot make network namespaces."""


@dataclass(frozen=True)
class Host:
    """A network namespace. `name` is also what the host calls itself."""

    name: str
    namespace: str

    def torchrun(self, ranks: int, *arguments: str) -> subprocess.Popen[str]:
        """What docs/guides/gpus.md says to start on each of two nodes; `left` is the one that they meet on."""
        rename = 'echo "$1" >/proc/sys/kernel/hostname; shift; exec "$@"'
        command = [
            *["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", rename, "sh", self.name],
            *[sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--nproc_per_node={ranks}"],
            *["--rdzv_backend=c10d", f"--rdzv_endpoint={NAMES[0]}:29500", *arguments],
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def cut(self) -> None:
        """Pull the plug: packets vanish, and nobody is told."""
        _ip("-n", self.namespace, "link", "set", "cable", "down")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Raises CannotMakeHostsError with the reason."""
    left, right = hosts = tuple(Host(name, f"sidpar-{os.getpid()}-{name}") for name in NAMES)
    try:
        try:
            for host in hosts:
                _ip("netns", "add", host.namespace)
            ends = [word for host in hosts for word in ("name", "cable", "netns", host.namespace)]
            _ip("link", "add", *ends[:4], "type", "veth", "peer", *ends[4:])
            for host, address in zip(hosts, ADDRESSES, strict=True):
                _ip("-n", host.namespace, "address", "add", f"{address}/24", "dev", "cable")
                for link in ("lo", "cable"):
                    _ip("-n", host.namespace, "link", "set", link, "up")
                names = _names(host)
                names.parent.mkdir(parents=True)
                names.write_text(HOSTS)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CannotMakeHostsError(getattr(error, "stderr", None) or str(error)) from error
        yield left, right
    finally:
        for host in hosts:
            _names(host).unlink(missing_ok=True)
            if _names(host).parent.exists():
                _names(host).parent.rmdir()
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True, check=False)


def _names(host: Host) -> Path:
    """What `ip netns exec` shows in place of /etc/hosts."""
    return Path("/etc/netns") / host.namespace / "hosts"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
