"""``runnel model``: seeds and what came of them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runnel.cli.desk import Desk, command, group
from runnel.common.errors import InvalidInput, NotFound
from runnel.common.model_format import ModelFormat

if TYPE_CHECKING:
    from rich.console import RenderableType

    from runnel.sdk import Model

app = group("Models: list them, show where they come from, download them, convert them.")


class FormatChoice(StrEnum):
    """A format of model files."""

    npz = "npz"
    safetensors = "safetensors"


class KeyChoice(StrEnum):
    """What tensors are called."""

    same = "same"
    numbers = "numbers"
    arr = "arr"


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
        typer.Option(
            "--output", "-o", metavar="FILE", help="What to write; default: ID.FORMAT here.", show_default=False
        ),
    ] = None,
    model_format: Annotated[
        FormatChoice | None,
        typer.Option(
            "--format", help="Of the file; default: what FILE ends with, else the format of the session's seed."
        ),
    ] = None,
) -> None:
    """Download a model's file, verified."""
    found = desk.network.models.show(model)
    named = None if out is None else ModelFormat.of_name(out)
    wanted = model_format.value if model_format else named.value if named else found.format
    target = out or Path(f"{found.model}.{wanted}")
    with desk.transfer(found.model) as progress:
        desk.network.models.get(found.model, target, format=wanted, progress=progress)
    if desk.as_json:
        desk.write_json(dict(found.raw) | {"path": str(target)})
    else:
        desk.say(f"Wrote {found.model} to {target}.")


@command(app, "convert", local=True)
def convert_model(
    desk: Desk,
    file: Annotated[Path, typer.Argument(metavar="IN", help="A model: .npz or .safetensors, whatever it is called.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to write, in the format that the name ends with.")],
    model_format: Annotated[
        FormatChoice | None, typer.Option("--format", help="Of OUT, if its name does not say it.")
    ] = None,
    keys: Annotated[
        KeyChoice,
        typer.Option(
            "--keys",
            help="Of the tensors: as they are; or numbers, 0, 1 …; or arr, arr_0, arr_1 … as numpy.savez numbers them.",
        ),
    ] = KeyChoice.same,
    names_from: Annotated[
        Path | None,
        typer.Option(
            "--names-from",
            metavar="MODEL",
            help="Give each tensor the name that it has in this model, by place; numbered ones by their number.",
        ),
    ] = None,
) -> None:
    """Write a model in another format or with other keys; every number stays as it is, bit for bit."""
    from runnel.cli.tables import size
    from runnel.common.tensors import Arrange, convert, find_format, named, numbered, open_model

    wanted = ModelFormat(model_format.value) if model_format else ModelFormat.of_name(out)
    if wanted is None:
        raise InvalidInput(
            f"{out} ends with no model format, so it has to be said which it is to have.",
            hint="For example --format safetensors.",
        )
    if names_from is not None and keys is not KeyChoice.same:
        raise InvalidInput("--keys and --names-from both say what the tensors are called; give one of them.")
    arrange: Arrange | None = None
    for given in (file, *([names_from] if names_from else [])):
        if not given.is_file():
            raise NotFound(f"There is no model {given}.", path=str(given))
    if names_from is not None:
        with open_model(names_from, find_format(names_from), source=str(names_from)) as model:
            arrange = named(model.schema)
    elif keys is not KeyChoice.same:
        arrange = numbered("arr_" if keys is KeyChoice.arr else "")
    schema = convert(file, out, wanted, source=str(file), arrange=arrange)
    if desk.as_json:
        tensors = [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in schema.tensors]
        desk.write_json({"path": str(out), "format": wanted.value, "n_params": schema.n_params, "tensors": tensors})
        return
    written = size(out.stat().st_size)
    desk.say(f"Wrote {out}: {schema.n_params:,} parameters in {len(schema.tensors)} tensors, {written}.")


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
