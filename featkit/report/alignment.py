"""How well a model's cameras fit the positions it was moved onto: a table and a line."""

from __future__ import annotations

from featkit.mapping.metric import Alignment
from featkit.report.content import Cell, Table

AXES = {"gps": ("east m", "north m", "up m")}


def alignment_table(found: Alignment) -> Table:
    """One row per image with a known position; residuals in metres, those that were not used marked."""
    assert found.fit is not None
    columns = ["image", "residual m", *AXES.get(found.method, ("x m", "y m", "z m")), "used"]
    rows: list[list[Cell]] = [
        [name, float(residual), *map(float, offset), "yes" if used else "no"]
        for name, residual, offset, used in zip(
            found.names, found.fit.residuals, found.fit.offsets, found.fit.used, strict=True
        )
    ]
    left_out = frozenset(index for index, used in enumerate(found.fit.used) if not used)
    return Table("Cameras against the given positions", columns, rows, highlight=left_out)


def alignment_lines(found: Alignment) -> list[str]:
    """What came out, for people."""
    lines = [f"scale: {found.scale:.6g} m per unit of the model"]
    if found.fit is None:
        return lines
    numbers = found.as_json()
    residual = numbers["residual_m"]
    lines[0] += f" (± {100 * found.fit.scale_std:.2g} %), orientation ± {found.fit.orientation_std_deg:.2g} degrees"
    lines.append(
        f"residual: rms {residual['rms']:.4g} m, median {residual['median']:.4g} m, largest {residual['max']:.4g} m,"
        f" over {numbers['used']} of {numbers['positions']} positions"
    )
    if found.origin is not None:
        origin, height = found.origin, found.origin.altitude_m
        altitude = "" if height is None else f", altitude {height:g} m"
        lines.append(f"origin: latitude {origin.latitude_deg:.7f}, longitude {origin.longitude_deg:.7f}{altitude}")
    return lines
