"""Two network namespaces, of the gateway and of the API, and a wire between them.

The namespaces have no names: the kernel removes them when the last process in them ends, however it
ends. The calling thread stays in the gateway's namespace, where the client is as well; sockets of
the API and the name server are opened `in_api`.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1

GATEWAY = "10.1.0.1"
GATEWAY_IPV6 = "2001:db8::1"
NAME_SERVER = "10.1.0.53"
# Equally far from GATEWAY by RFC 6724 rule 9, so that getaddrinfo keeps the name server's order.
API = ["10.1.0.17", "10.1.0.18", "10.1.0.19", "10.1.0.20"]
API_IPV6 = "2001:db8::17"

GATEWAY_MAC = "02:00:00:00:00:01"
API_MAC = "02:00:00:00:00:02"
# No interface has it: frames to it are dropped without an answer.
UNUSED_MAC = "02:00:00:00:00:03"

libc = ctypes.CDLL(None, use_errno=True)


def why_unavailable():
    """Why the tests cannot run as this user on this machine, or None."""
    for command, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("mount", "mount")):
        if not shutil.which(command):
            return f"no command {command}; install the package {package}"
    test = "ip link add test0 type veth peer name test1"
    command = ["unshare", "--net", "--mount", "sh", "-c", test]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        return f"cannot create namespaces and a veth pair as this user: {result.stderr.strip()}"
    return None


def check(result):
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def end_with_parent():
    """Has the kernel kill this child process when its parent ends."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Network:
    def __init__(self):
        self.api = self.create_namespace()
        self.gateway = self.create_namespace()
        api_path = f"/proc/{os.getpid()}/fd/{self.api}"
        self.ip(
            f"link add gateway address {GATEWAY_MAC} type veth "
            f"peer name api address {API_MAC} netns {api_path}"
        )
        self.ip("link set lo up")
        self.ip("link set gateway up")
        self.ip(f"address add {GATEWAY}/24 dev gateway")
        with self.in_api():
            self.ip("link set lo up")
            self.ip("link set api up")
            for address in (NAME_SERVER, *API):
                self.ip(f"address add {address}/24 dev api")

    @staticmethod
    def create_namespace():
        check(libc.unshare(CLONE_NEWNET))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def in_api(self):
        check(libc.setns(self.api, CLONE_NEWNET))
        try:
            yield
        finally:
            check(libc.setns(self.gateway, CLONE_NEWNET))

    @staticmethod
    def ip(arguments):
        subprocess.run(["ip", *arguments.split()], check=True)

    async def silence(self, address):
        """Drops all packets to `address`, of open connections too."""
        await self.set_neighbour(address, UNUSED_MAC)

    async def end_silence(self, address):
        await self.set_neighbour(address, API_MAC)

    @staticmethod
    async def set_neighbour(address, mac):
        arguments = f"neighbour replace {address} lladdr {mac} dev gateway nud permanent"
        process = await asyncio.create_subprocess_exec("ip", *arguments.split())
        if await process.wait():
            raise OSError(f"ip {arguments} failed")

    def add_silent_ipv6(self):
        """A route to API_IPV6 on which all packets are lost."""
        self.ip(f"-6 address add {GATEWAY_IPV6}/64 dev gateway nodad")
        self.ip(f"-6 neighbour add {API_IPV6} lladdr {UNUSED_MAC} dev gateway nud permanent")


@contextlib.contextmanager
def running_gateway(binary, config, log_path):
    """The gateway in the gateway's namespace, with a separate resolver configuration."""
    files = {
        "/etc/resolv.conf": f"nameserver {NAME_SERVER}\n",
        "/etc/hosts": "127.0.0.1 localhost\n",
        "/etc/nsswitch.conf": "hosts: files dns\n",
    }
    with tempfile.TemporaryDirectory() as folder, open(log_path, "wb") as log:
        mounts = []
        for target, content in files.items():
            source = os.path.join(folder, os.path.basename(target))
            with open(source, "w") as file:
                file.write(content)
            if os.path.exists(target):
                mounts.append(f"mount --bind {source} {target}")
        config_path = os.path.join(folder, "gateway.toml")
        with open(config_path, "w") as file:
            file.write(config)
        script = " && ".join([*mounts, f'exec "$0" run -c {config_path}'])
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, binary],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
