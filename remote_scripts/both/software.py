"""What is told to whatever installs something."""

from dataclasses import dataclass

from remote_scripts.both.symptoms import Context


@dataclass(frozen=True, kw_only=True)
class Software:
    """What every layer that installs something is told. `context`: for messages; the name in it is the system's place
    in the settings. `lock_seconds`: how long apt's locks are waited for."""

    context: Context
    lock_seconds: int = 600
    download_seconds: int = 1800
    install_seconds: int = 3600


@dataclass(frozen=True, kw_only=True)
class Installer:
    """NVIDIA's installer. `sha256`: the one that was known before: what can replace the file can replace what is
    published beside it; `arguments`: of the installer.
    """

    version: str
    url: str
    sha256: str
    arguments: tuple[str, ...] = ()

    def file(self, folder: str) -> str:
        """Its path in a folder."""
        return f"{folder}/NVIDIA-Linux-x86_64-{self.version}.run"
