"""``runnel model``: seeds and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runnel.cli.desk import Desk, command, group

if TYPE_CHECKING:
    from rich.console import RenderableType

    from runnel.sdk import Model

app = group("Models: list them, show where they come from, download them.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The model; 4 or more characters of its id will do.")]


@command(app, "list")
def list_models(
    desk: Desk, session: Annotated[str | None, typer.Option("--session", metavar="ID", help="Only of this one.")] = None
) -> None:
    """List models, newest first."""
    from runnel.cli.tables import metrics, size, table, when

    models = list(desk.network.models.list(session=session))
    if desk.as_json:
        desk.write_json([model.raw for model in models])
        return
    made = table("model", "session", "round", "size", "made", "metrics", right=("round", "size"), fold=("metrics",))
    for model in models:
        at = "seed" if model.round is None else str(model.round)
        file = size(model.size_bytes) if model.removed_at is None else "removed"
        made.add_row(model.model, model.session or "", at, file, when(model.created_at), metrics(model.metrics))
    desk.console.print(made)


@command(app, "show")
def show(desk: Desk, model: Id) -> None:
    """Show a model: who took part with which weight, and its trail back to the seed."""
    trail = list(desk.network.models.trail(model))
    document = dict(trail[0].raw) | {"trail": [_step(step) for step in trail]}
    desk.answer(document, lambda: _shown(trail))


@command(app, "get")
def get(
    desk: Desk,
    model: Id,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="What to write; default: ID.npz here.", show_default=False),
    ] = None,
) -> None:
    """Download a model's file, verified."""
    found = desk.network.models.show(model)
    target = out or Path(f"{found.model}.{found.format}")
    with desk.transfer(found.model) as progress:
        desk.network.models.get(found.model, target, progress=progress)
    if desk.as_json:
        desk.write_json(dict(found.raw) | {"path": str(target)})
    else:
        desk.say(f"Wrote {found.model} to {target}.")


def _step(model: Model) -> dict[str, object]:
    names = ("model", "parent", "session", "round", "removed_at", "metrics")
    return {name: model.raw.get(name) for name in names} | {"participants": len(model.participants)}


def _shown(trail: list[Model]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from runnel.cli.tables import facts, metrics, number, size, table, when

    model = trail[0]
    gone = f", removed {when(model.removed_at)}" if model.removed_at else ""
    parts: list[RenderableType] = [
        facts(
            [
                ("model", model.model),
                ("digest", model.digest),
                ("file", f"{size(model.size_bytes)}, {model.format}{gone}"),
                ("parameters", f"{model.n_params:,} in {model.tensors} arrays"),
                ("session", model.session),
                ("round", model.round),
                ("package", model.package),
                ("strategy", model.strategy),
                ("metrics", metrics(model.metrics) or None),
                ("made", when(model.created_at)),
            ]
        )
    ]
    if model.participants:
        total = sum(part.weight or 0.0 for part in model.participants)
        made = table("participant", "weight", "share", right=("weight", "share"), fold=("participant",))
        for part in model.participants:
            share = f"{100 * (part.weight or 0.0) / total:.1f} %" if total > 0 else ""
            made.add_row(part.client, number(part.weight), share)
        parts += [Text(), made]
    if len(trail) > 1:
        made = table("trail", "round", "participants", "metrics", right=("round", "participants"), fold=("metrics",))
        for step in trail:
            at = "seed" if step.round is None else str(step.round)
            made.add_row(step.model, at, str(len(step.participants) or ""), metrics(step.metrics))
        parts += [Text(), made]
    return Group(*parts)
