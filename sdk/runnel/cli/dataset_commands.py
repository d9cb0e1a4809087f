"""``runnel dataset``: what sites publish of their data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from runnel.cli.desk import Desk, command, group

if TYPE_CHECKING:
    from rich.console import RenderableType

    from runnel.sdk import Dataset

app = group("Datasets: what sites publish of their data.")


@command(app, "list")
def list_datasets(desk: Desk) -> None:
    """List the datasets that sites publish, each with its sites."""
    from runnel.cli.site_view import printable
    from runnel.cli.tables import table

    datasets = list(desk.network.datasets.list())
    if desk.as_json:
        desk.write_json([dataset.raw for dataset in datasets])
        return
    made = table("dataset", "title", "by", "sites", fold=("title", "sites"))
    for each in datasets:
        made.add_row(each.id, printable(each.title), printable(each.creator), ", ".join(each.sites))
    desk.console.print(made)


@command(app, "show")
def show(desk: Desk, dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Its id.")]) -> None:
    """Show the tables and fields that may be selected from, and where."""
    found = desk.network.datasets.show(dataset)
    desk.answer(found.raw, lambda: _shown(found))


def _shown(found: Dataset) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from runnel.cli.site_view import printable
    from runnel.cli.tables import facts, table

    names = ("creator", "contact", "license", "version")
    head = facts(
        [
            ("dataset", found.id),
            ("title", printable(found.title) or None),
            ("description", printable(found.description) or None),
            *((name, printable(str(found.raw.get(name, ""))) or None) for name in names),
            ("sites", ", ".join(found.sites)),
        ]
    )
    made = table("table", "field", "type", "meaning", "sites", fold=("meaning", "sites"))
    for each in found.tables:
        for field in each["fields"]:
            values = each["lookups"].get(field["lookup"] or "", {})
            coded = "; ".join(f"{value}: {meaning}" for value, meaning in values.items())
            meaning = ". ".join(part for part in (field["label"], field["description"], coded) if part)
            made.add_row(
                printable(each["name"]),
                printable(field["name"]),
                field["type"],
                printable(meaning),
                ", ".join(each["sites"]),
            )
        if not each["fields"]:
            made.add_row(printable(each["name"]), "", "", printable(each["description"]), ", ".join(each["sites"]))
    return Group(head, Text(), made)
