"""A forecast on one screen."""

from typing import Any


def screen(found: dict[str, Any]) -> str:
    """Of what `forecast` finds, each line with what it is an estimate of."""
    slices = f", {found['slices']} slices" if found["slices"] > 1 else ""
    lines = [
        ("devices", f"{found['devices']} x {found['device']} ({found['topology']}{slices})", "")
    ]
    many = len(found["stages"]) > 1
    for stage in found["stages"]:
        if many:
            lines += [("", "", ""), (stage["stage"], "", "")]
        lines += _of_stage(stage, found)
    if many and found["hours"] is not None:
        lines += [("", "", ""), _hours("in all", found["hours"], found["devices"])]
    text = "\n".join(f"{a:<16}{b:<44}{c}".rstrip() for a, b, c in lines)
    return "\n".join([text, *(f"to make it fit, by rule of three: {a}" for a in found["advice"])])


def _of_stage(stage, found):
    most, devices = found["device_memory_gib"], found["devices"]
    links = "at the links' best"
    if found["slices"] > 1:
        links += "; the network between slices, which is slower, is not in it"
    quick = ", in haste: the step's may be a sixth off" if found["quick"] else ""
    flop = f"{stage['model_flops_per_chip'] / 1e9:.2f} GFLOP a chip"
    memory, there = stage["memory_gib_per_device"], f" of {most:g}" if most else ""
    if stage["fits"] is False and most:
        there += f": {memory - most:.2f} too many"
    lines = [
        ("parameters", f"{stage['parameters']:,}", "counted"),
        ("model", flop, "counted: products, three times the forward's of what learns"),
        ("memory", f"{memory:.2f} GiB a device{there}", f"allocated by the compiler{quick}"),
    ]
    if stage["collectives"] is None:  # it doesn't fit
        return lines
    if stage["resident_gib"]:
        lines.append(("  chips", f"{stage['resident_gib']:.2f} GiB", "resident"))
    if stage["bytes_accessed_gb"] is not None:
        traffic = f"{stage['bytes_accessed_gb']:.1f} GB a step"
        lines.append(("traffic", traffic, "the compiler's count, loops as if they went round once"))
    lines += [
        ("copies", f"{stage['dataset_copies']}", "of the chips in a step, counted"),
        ("serial loops", f"{stage['serial_loops']}", "that the compiler made, counted"),
    ]
    for kind, traffic in stage["collectives"].items():
        text = f"{traffic['count']} of {traffic['megabytes']:.2f} MB in all"
        parts = ", ".join(f"{part} {size:.2f}" for part, size in traffic["parts"].items())
        lines.append((kind, text, f"a step, counted; MB of {parts}"))
    if stage["estimated_step_ms"] is None:
        why = "the compiler has no estimate for such devices"
        why = "not estimated with --quick" if found["quick"] else why
        return [*lines, ("a step", "unknown", why)]
    bound = f"products alone at the peak: {stage['flop_bound_ms']:.1f} ms"
    lines.append(
        ("a step", f"{stage['estimated_step_ms']:.1f} ms", f"the compiler's estimate; {bound}")
    )
    for part, milliseconds in stage["parts_ms"].items():
        whose = links if part == "collectives" else "the compiler's estimate"
        lines.append((f"  {part}", f"{milliseconds:.2f} ms", whose))
    lines.append(("rate", f"{stage['chips_per_second']:,.0f} chips/s", "from that"))
    return [*lines, _hours(f"{stage['steps']:,} steps", stage["hours"], devices)]


def _hours(what, hours, devices):
    whole = f"{hours:.2f} h, {hours * devices:.1f} device-hours"
    return what, whole, "from that; no evaluation, reading or compiling"
