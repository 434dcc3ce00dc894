"""What accelerators can do, as their makers say, by the name that JAX has for them."""

from typing import NamedTuple


class Accelerator(NamedTuple):
    """One device."""

    name: str
    tflops: float  # dense products in bfloat16, 10^12 floating-point operations a second
    memory_gib: float  # that a program can have
    bandwidth_gb: float  # of that memory, 10^9 bytes a second
    clock_ghz: float = 0.0  # of a TPU's matrix units: its peak over what they do in a cycle
    links_gb: float = 0.0  # between the TPUs of a slice, each way, 10^9 bytes a second


# Of v5e's 16 GiB the system keeps a quarter of one, and of v6e's 32 three quarters.
_V5E = Accelerator("TPU v5e", 197, 15.75, 819, 1.5, 200)
# The beginning of `Device.device_kind`; of two that fit, the longer.
_KINDS = {
    "TPU v4": Accelerator("TPU v4", 275, 32, 1228, 1.05, 300),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": Accelerator("TPU v5p", 459, 95, 2765, 1.75, 600),
    "TPU v6 lite": Accelerator("TPU v6e", 918, 31.25, 1640, 1.75, 448),
    "NVIDIA A100": Accelerator("NVIDIA A100", 312, 40, 1555),
    "NVIDIA A100-SXM4-80GB": Accelerator("NVIDIA A100 80 GB", 312, 80, 2039),
    "NVIDIA A100 80GB PCIe": Accelerator("NVIDIA A100 80 GB", 312, 80, 1935),
    "NVIDIA H100": Accelerator("NVIDIA H100", 989, 80, 3350),
    "NVIDIA H100 PCIe": Accelerator("NVIDIA H100 PCIe", 756, 80, 2000),
    "NVIDIA H100 NVL": Accelerator("NVIDIA H100 NVL", 835, 94, 3900),
    "NVIDIA H200": Accelerator("NVIDIA H200", 989, 141, 4800),
}


def of_kind(device_kind: str) -> Accelerator | None:
    """The accelerator that JAX calls so, if it is known."""
    fitting = [kind for kind in _KINDS if device_kind.startswith(kind)]
    return _KINDS[max(fitting, key=len)] if fitting else None
