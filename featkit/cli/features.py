"""`featkit features`: what `--features` can say."""

from __future__ import annotations

from featkit.cli.common import Outcome, RunOptions, verb

HELP = "List the local features there are: what each is, what it was learned from, its licence, its weights."


@verb
def command(*, run: RunOptions) -> Outcome:
    from dataclasses import asdict

    from featkit.features.listing import list_features
    from featkit.report.content import Table

    rows = list_features()
    cells = [[row.name, row.summary, row.data or "-", row.licence or "-", row.weights] for row in rows]
    table = Table("Features (--features NAME)", ["name", "what it is", "learned from", "licence", "weights"], cells)
    return Outcome({"features": [asdict(row) for row in rows]}, [], [table])
