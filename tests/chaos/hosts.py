"""Hosts on one machine: network namespaces, each with a link to two networks, that of Kafka and that of PostgreSQL.

    the machine itself ── bridge of Kafka ────── eth of each host
                      └── bridge of PostgreSQL ── eth of each host

A link that is down is silence: nobody is told. What a killed run leaves shows with `ip netns` and `ip link`, its names
beginning with `sa-`.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

NETWORKS = ("kafka", "postgres")


def ip(*arguments: str, check: bool = True) -> str:
    made = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert not check or made.returncode == 0, f"ip {' '.join(arguments)}: {made.stderr.strip()}"
    return made.stdout


def unavailable() -> str | None:
    """Why there can be no hosts on this machine; None: there can."""
    if not sys.platform.startswith("linux") or shutil.which("ip") is None:
        return "hosts need Linux' network namespaces and the program ip (package iproute2)"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    try:
        with hosts(1):
            return None
    except AssertionError as error:
        return f"no network namespaces here: {error}"


class Network:
    """A bridge with an address of the machine itself, and addresses for its hosts."""

    def __init__(self, name: str, bridge: str, subnet: ipaddress.IPv4Network) -> None:
        self.name = name
        self.bridge = bridge
        self.subnet = subnet
        self.address = str(subnet[1])

    def make(self) -> None:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.address}/{self.subnet.prefixlen}", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")

    def remove(self) -> None:
        ip("link", "del", self.bridge, check=False)

    def silent_address(self) -> str:
        """One that nobody answers at, as behind a router: without it the machine itself would soon know, and say so."""
        silent = str(self.subnet[-2])
        ip("neigh", "replace", silent, "lladdr", "02:00:00:00:00:01", "dev", self.bridge, "nud", "permanent")
        return silent


class Host:
    """enter: what a command begins with that is to run there."""

    def __init__(self, number: int, run: str, networks: list[Network]) -> None:
        self.number = number
        self.name = f"host-{number}"
        self._namespace = f"sa-{run}-{number}"
        self.enter = ["ip", "netns", "exec", self._namespace]
        self.addresses = {network.name: str(network.subnet[10 + number]) for network in networks}
        self._ports = {network.name: f"{network.bridge}-{number}" for network in networks}

    def make(self, networks: list[Network]) -> None:
        ip("netns", "add", self._namespace)
        ip("-n", self._namespace, "link", "set", "lo", "up")
        for network in networks:
            port, address = self._ports[network.name], f"{self.addresses[network.name]}/{network.subnet.prefixlen}"
            ip("link", "add", port, "type", "veth", "peer", "name", network.name, "netns", self._namespace)
            ip("-n", self._namespace, "addr", "add", address, "dev", network.name)
            ip("-n", self._namespace, "link", "set", network.name, "up")
            ip("link", "set", port, "master", network.bridge, "up")

    def remove(self) -> None:
        self.kill_everything()
        for port in self._ports.values():
            ip("link", "del", port, check=False)
        ip("netns", "del", self._namespace, check=False)

    @contextmanager
    def cut_off(self, *networks: str) -> Iterator[None]:
        """Within the block its links, or those named, are down."""
        cut = [self._ports[network] for network in networks or NETWORKS]
        for port in cut:
            ip("link", "set", port, "down")
        try:
            yield
        finally:
            for port in cut:
                ip("link", "set", port, "up")

    def kill_everything(self) -> None:
        """SIGKILL to all that runs there, as a loss of power would."""
        for pid in ip("netns", "pids", self._namespace, check=False).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextmanager
def hosts(count: int) -> Iterator[tuple[dict[str, Network], list[Host]]]:
    """Networks by name, and hosts; at the end whatever still runs on them is killed, and all is removed."""
    run = uuid.uuid4().hex[:4]
    subnets = _free_subnets(len(NETWORKS))
    networks = [Network(name, f"sa-{run}-{name[0]}", subnet) for name, subnet in zip(NETWORKS, subnets, strict=True)]
    made = [Host(number, run, networks) for number in range(1, count + 1)]
    with ExitStack() as removed_later:
        for network in networks:
            removed_later.callback(network.remove)
            network.make()
        for host in made:
            removed_later.callback(host.remove)
            host.make(networks)
        yield {network.name: network for network in networks}, made


def _free_subnets(count: int) -> list[ipaddress.IPv4Network]:
    """Of the private range 10.0.0.0/8, what no route of this machine leads to."""
    routes = [route["dst"] for route in json.loads(ip("-j", "-4", "route")) if route["dst"] != "default"]
    taken = [ipaddress.IPv4Network(route) for route in routes]
    all_of_them = list(ipaddress.IPv4Network("10.0.0.0/8").subnets(new_prefix=24))
    free = (subnet for subnet in random.sample(all_of_them, 1000) if not any(map(subnet.overlaps, taken)))
    return [next(free) for _ in range(count)]
