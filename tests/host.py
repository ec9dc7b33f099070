"""A real host to deploy to, on one machine: Debian in a root folder of its own, with its own network, processes, sshd.

Two network namespaces are joined by a cable: ours, with Ansible and the emulated EC2 and STS, and the host's, with the
instance metadata service. Neither has a way out. Needs root and Linux; see `missing`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

REPOSITORY = Path(__file__).parent.parent
OUR_ADDRESS = "198.51.100.1"
HOST_ADDRESS = "198.51.100.2"
AWS_PORT = 5000
METADATA_ADDRESS = "169.254.169.254"
SUITE, PYTHON = "bookworm", "3.11"
CLONE_NEWNET = 0x40000000

TOOLS = ("dpkg-scanpackages", "ip", "mmdebstrap", "ssh", "ssh-keygen", "unshare")

# What a fresh cloud image has, as far as it matters; and what the playbook installs, to be had from a repository.
THERE = "ca-certificates libfaketime openssh-server procps python3 python3-apt sudo"
TO_BE_HAD = "cloud-guest-utils cron logrotate python3-packaging python3-venv unzip"

RECIPE = f"""set -eu
root=$1
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
apt-get --yes --download-only --no-install-recommends -oDPkg::Chroot-Directory="$root" install {TO_BE_HAD}
mkdir -p "$root/srv/apt" "$root/srv/wheels"
mv "$root"/var/cache/apt/archives/*.deb "$root/srv/apt/"
(cd "$root/srv/apt" && dpkg-scanpackages . > Packages 2> /dev/null)
rm -rf "$root"/etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/srv/apt ./' > "$root/etc/apt/sources.list"
printf '[global]\\nno-index = true\\nfind-links = /srv/wheels\\n' > "$root/etc/pip.conf"
cat > "$root/etc/environment" <<'END'
AWS_ENDPOINT_URL_EC2=http://{OUR_ADDRESS}:{AWS_PORT}
AWS_ENDPOINT_URL_STS=http://{OUR_ADDRESS}:{AWS_PORT}
END
chroot "$root" useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/admin"
echo 'recorder' > "$root/etc/hostname"
printf '127.0.0.1 localhost recorder\\n' > "$root/etc/hosts"
cat > "$root/sbin/start" <<'END'
#!/bin/sh
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts /dev/shm /run/sshd /run/lock
mount -t devpts -o ptmxmode=666 devpts /dev/pts
hostname recorder
exec /usr/sbin/sshd -D -e
END
chmod 755 "$root/sbin/start"
"""


def missing() -> str | None:
    """Why there can be no host on this machine, if so."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(absent)}" if absent else None


def run(*command: str | Path, check: bool = True, **more: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]  # `more` is anything
        command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more
    )
    if check and done.returncode:
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def base_image() -> Path:
    """A folder with the root of a blank host and its key, built once for each recipe."""
    requirements = [REPOSITORY / name for name in ("requirements.txt", "requirements-history.txt")]
    pinned = "".join(path.read_text() for path in requirements)
    fingerprint = hashlib.sha256(f"{SUITE}{PYTHON}{THERE}{RECIPE}{pinned}".encode()).hexdigest()[:12]
    image = Path("/var/tmp") / f"ec2-flight-recorder-host-{fingerprint}"
    if image.exists():
        return image
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="ec2-flight-recorder-") as temporary:
        new = Path(temporary) / "image"
        new.mkdir()
        recipe = Path(temporary) / "recipe"
        recipe.write_text(RECIPE)
        run(
            *("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={THERE.replace(' ', ',')}"),
            *(f'--customize-hook=sh {recipe} "$1"', SUITE, new / "root"),
        )
        wheels = new / "root/srv/wheels"
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--dest", wheels)
        for path in requirements:
            run(*pip, "--only-binary=:all:", "--python-version", PYTHON, "-r", path)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", new / "key")
        keys = new / "root/home/admin/.ssh/authorized_keys"
        keys.parent.mkdir()
        shutil.copy(new / "key.pub", keys)
        run("chown", "-R", "1000:1000", keys.parent)
        new.rename(image)
    return image


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Be in that network namespace: this thread, and the threads and processes that it starts meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as ours, open(f"/run/netns/{namespace}") as theirs:

        def enter(descriptor: int) -> None:
            if libc.setns(descriptor, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns into {namespace}")

        enter(theirs.fileno())
        try:
            yield
        finally:
            enter(ours.fileno())


@dataclass
class Host:
    """A host that runs within a with statement. `layers` are what its root is made of, the uppermost first."""

    image: Path
    layers: Sequence[Path] = ()
    namespace: str = field(init=False)
    """The host's network."""
    our_namespace: str = field(init=False)

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="host")))
        self.namespace, self.our_namespace = f"fr{os.getpid()}h", f"fr{os.getpid()}o"
        for namespace in (self.namespace, self.our_namespace):
            run("ip", "netns", "add", namespace)
            self._stack.callback(run, "ip", "netns", "delete", namespace, check=False)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        cable = ("veth", "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "-n", self.our_namespace, "link", "add", "eth0", "type", *cable)
        for namespace, address in ((self.our_namespace, OUR_ADDRESS), (self.namespace, HOST_ADDRESS)):
            run("ip", "-n", namespace, "address", "add", f"{address}/30", "dev", "eth0")
            run("ip", "-n", namespace, "link", "set", "eth0", "up")
        run("ip", "-n", self.namespace, "address", "add", f"{METADATA_ADDRESS}/32", "dev", "lo")

        memory = self.folder / "memory"
        memory.mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", memory)
        self._stack.callback(run, "umount", "--lazy", memory, check=False)
        self.changes, work, self.root = memory / "changes", memory / "work", memory / "root"
        for path in (self.changes, work, self.root):
            path.mkdir()
        lower = ":".join(map(str, [*self.layers, self.image / "root"]))
        options = f"lowerdir={lower},upperdir={self.changes},workdir={work}"
        run("mount", "-t", "overlay", "overlay", "-o", options, self.root)
        self._stack.callback(run, "umount", "--lazy", self.root, check=False)

        process = subprocess.Popen(
            [
                *("ip", "netns", "exec", self.namespace),
                *("unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child"),
                *("chroot", self.root, "/sbin/start"),
            ],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(self._kill, process)
        for _ in range(100):
            if self.ssh("true", check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError("the host does not answer ssh")

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)  # unshare takes its child, the host's first process, along
        process.wait()

    @property
    def ssh_options(self) -> list[str]:
        options = {"UserKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "no", "LogLevel": "ERROR"}
        return ["-i", str(self.image / "key"), *(f"-o{name}={value}" for name, value in options.items())]

    def by_ssh(self, command: str, *, terminal: bool = False) -> list[str]:
        """The words of a command that runs `command` there as root, by ssh and sudo."""
        ssh = ["ssh", *self.ssh_options, *(["-tt"] if terminal else []), f"admin@{HOST_ADDRESS}"]
        return ["ip", "netns", "exec", self.our_namespace, *ssh, "sudo", "sh", "-c", shlex.quote(command)]

    def ssh(self, command: str, *, check: bool = True, terminal: bool = False) -> subprocess.CompletedProcess[str]:
        return run(*self.by_ssh(command, terminal=terminal), check=check, timeout=120)

    def playbook(
        self, *arguments: str, project: Path = REPOSITORY, target: str = "target=recorder", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`ansible-playbook deploy.yaml` in the folder `project`. Raises if it fails, unless `check` is off."""
        control = self.folder / "c"  # of this host: a connection to another one must not be used again
        control.mkdir(exist_ok=True)
        inventory = self.folder / "inventory"
        inventory.write_text(f"recorder ansible_host={HOST_ADDRESS} ansible_user=admin\n")
        try:
            return run(
                *("ip", "netns", "exec", self.our_namespace),
                *(Path(sys.executable).with_name("ansible-playbook"), "deploy.yaml", "--inventory", inventory),
                *("--extra-vars", target, *arguments),
                check=check,
                cwd=project,
                env={
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "HOME": str(self.folder),
                    "LANG": "C.UTF-8",
                    "ANSIBLE_LOCALHOST_WARNING": "false",
                    "ANSIBLE_PIPELINING": "true",
                    "ANSIBLE_SSH_ARGS": " ".join(["-oControlMaster=auto", "-oControlPersist=60s", *self.ssh_options]),
                    "ANSIBLE_SSH_CONTROL_PATH_DIR": str(control),
                },
                timeout=300,
            )
        finally:
            for socket in control.iterdir():
                run("ssh", "-oControlPath=" + str(socket), "-O", "exit", HOST_ADDRESS, check=False)
