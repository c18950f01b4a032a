"""python -m gft_kernels.env: the versions and devices that a report of a problem needs."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import gft_kernels


def version(package: str) -> str:
    """The installed version of a package, or "none". The package is not imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def driver() -> str:
    """The version of the NVIDIA or AMD driver, or "none" where torch sees no device."""
    if not torch.cuda.is_available():
        return "none"
    for path in ("/sys/module/nvidia/version", "/sys/module/amdgpu/version"):
        if Path(path).exists():
            return Path(path).read_text().strip()
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            out = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split()
        except (OSError, subprocess.TimeoutExpired):
            out = []
        if out:
            return out[0]
    return "unknown"


def device_line(index: int) -> str:
    """Name, capability, multiprocessors, memory and shared memory of a device."""
    properties = torch.cuda.get_device_properties(index)
    kind = f"capability {properties.major}.{properties.minor}"
    if torch.version.hip:
        kind = getattr(properties, "gcnArchName", "")
    shared = getattr(properties, "shared_memory_per_block_optin", 0)
    shared = shared or getattr(properties, "shared_memory_per_block", 0)
    return (
        f"{properties.name}, {kind}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 2**30:.1f} GiB, {shared / 1024:.0f} KiB shared memory a block"
    )


def versions() -> dict[str, str]:
    """Name -> version or description, in the order of a report."""
    found = {"gft-kernels": gft_kernels.__version__, "python": platform.python_version(), "system": platform.platform()}
    found["torch"] = torch.__version__
    found |= {name: version(name) for name in ("triton", "transformers")}
    if torch.version.hip:
        found["ROCm"] = torch.version.hip
    found["CUDA"] = torch.version.cuda or "none"
    found["driver"] = driver()
    if torch.cuda.is_available():
        found |= {f"device {i}": device_line(i) for i in range(torch.cuda.device_count())}
    else:
        found["device"] = f"cpu {platform.machine()}, {torch.get_num_threads()} threads"
    return found


def main() -> None:
    for name, value in versions().items():
        print(f"{name:<14} {value}")


if __name__ == "__main__":
    main()
