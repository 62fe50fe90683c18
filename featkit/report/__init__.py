"""Tables, plots, 3D scene and match pictures in one self-contained html page. The only package that imports plotly."""

from featkit.report.content import (
    Camera3D,
    Configuration,
    Headline,
    Histogram,
    MatchPicture,
    Report,
    Scene3D,
    Section,
    Table,
)
from featkit.report.page import write_report

__all__ = [
    "Camera3D",
    "Configuration",
    "Headline",
    "Histogram",
    "MatchPicture",
    "Report",
    "Scene3D",
    "Section",
    "Table",
    "write_report",
]
