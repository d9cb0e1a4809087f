"""``runnel task``: an image at chosen sites, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runnel.cli.desk import Desk, command, group
from runnel.cli.task_trial import attempt
from runnel.cli.task_words import (
    CommandLine,
    Database,
    Input,
    InputFile,
    Select,
    Sql,
    Variables,
    input_entries,
    key_values,
    seconds,
)
from runnel.common.errors import InvalidInput, NotFound
from runnel.common.ids import valid_name

if TYPE_CHECKING:
    from runnel.sdk import Run, Task
    from runnel.sdk.combining import SiteResults

app = group("Tasks: run an image at sites, follow it, fetch results, cancel, approve, reject.")

Id = Annotated[str, typer.Argument(metavar="TASK", help="The task; 4 or more characters of its id will do.")]
Site = Annotated[list[str] | None, typer.Option("--site", metavar="NAME", help="Only of this site; may be repeated.")]
Reason = Annotated[str, typer.Option("--reason", help="For the site's records.")]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until it has ended; exit status 0 only if all of it is done.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where result files go, in a folder for each site.")
]


@command(app, "run")
def run(
    desk: Desk,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Container image, as the sites' engines know it.")],
    site: Annotated[
        list[str],
        typer.Option("--site", metavar="NAME", help="Where it runs; may be repeated. all: all that take tasks now."),
    ],
    name: Annotated[str, typer.Option("--name", help="For people; need not be unique.")] = "",
    input: Input = None,
    input_file: InputFile = None,
    select: Select = None,
    sql: Sql = None,
    database: Database = "default",
    env: Variables = None,
    command_line: CommandLine = None,
    contract: Annotated[
        str, typer.Option("--contract", help="Which files the container finds: plain, pytaskmanager, vantage6.")
    ] = "plain",
    profile: Annotated[str | None, typer.Option("--profile", help="A variant of the contract.")] = None,
    whole_database: Annotated[
        list[str] | None,
        typer.Option("--whole-database", metavar="LABEL", help="The container sees it whole, where its contract does."),
    ] = None,
    central: Annotated[bool, typer.Option("--central", help="It may ask the network for sub-tasks.")] = False,
    group_name: Annotated[
        str | None, typer.Option("--group", metavar="NAME", help="Tasks that iterate share a folder at each site.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="To find it by.")] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="What has not begun by then fails: 30m, 12h, 7d.")
    ] = None,
    wait: Wait = False,
    output: Output = None,
    combine: Annotated[
        str | None,
        typer.Option(
            "--combine",
            metavar="SCRIPT",
            help="Then run this script over the folder of --output; csv: put tables of the same name together.",
        ),
    ] = None,
    minimum_sites: Annotated[
        int | None,
        typer.Option("--minimum-sites", min=1, help="So many done sites are enough; with --combine 1, else all."),
    ] = None,
) -> None:
    """Run an image once at each of some sites. A site that is away runs it when it is back."""
    import shlex

    if input and input_file:
        raise InvalidInput("--input and --input-file exclude each other.")
    if combine is not None and output is None:
        raise InvalidInput("--combine needs --output: the folder for what the sites give.")
    with desk.transfer("storing") as progress:
        task = desk.network.run_task(
            image,
            sites="*" if site == ["all"] else site,
            name=name,
            input=input_file or input_entries(input),
            select=select,
            sql=sql,
            database=database,
            env=key_values("--env", env),
            command=None if command_line is None else shlex.split(command_line),
            contract=contract,
            profile=profile,
            databases=whole_database or (),
            central=central,
            group=group_name,
            tags=key_values("--tag", tag),
            expires_s=None if expires is None else seconds(expires),
            progress=progress,
        )
    if wait or output is not None or minimum_sites is not None:
        _follow(desk, task, output, combine=combine, minimum=minimum_sites or (None if combine is None else 1))
    elif desk.as_json:
        desk.write_json(task.raw)
    else:
        desk.say(f"{task.task} is at {len(task.runs)} sites. Follow it: runnel task show {task.task}")


@command(app, "select")
def select_out(
    desk: Desk,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="{ table { field field } }")],
    site: Annotated[
        list[str],
        typer.Option("--site", metavar="NAME", help="Whose data; may be repeated. all: all that take tasks now."),
    ],
    database: Database = "default",
    language: Annotated[str, typer.Option("--language", metavar="graphql|sql|sparql")] = "graphql",
    wait: Wait = False,
    output: Output = None,
) -> None:
    """Have sites give out data, as CSV, without an image; those whose policy does not let them refuse."""
    sites = "*" if site == ["all"] else site
    task = desk.network.tasks.select(query, sites=sites, database=database, language=language)
    if wait or output is not None:
        _follow(desk, task, output)
    elif desk.as_json:
        desk.write_json(task.raw)
    else:
        desk.say(f"{task.task} is at {len(task.runs)} sites. Follow it: runnel task show {task.task}")


command(app, "try", local=True)(attempt)


@command(app, "list")
def list_tasks(
    desk: Desk,
    status: Annotated[
        str | None, typer.Option("--status", help="Only those: queued, running, done, failed, cancelled.")
    ] = None,
    site: Annotated[str | None, typer.Option("--site", metavar="NAME", help="Only those of this site.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="Only those with this tag.")
    ] = None,
) -> None:
    """List tasks, newest first."""
    from runnel.cli.task_view import tasks_table

    tasks = list(desk.network.tasks.list(status=status, site=site, tags=tag or ()))
    desk.answer([task.raw for task in tasks], lambda: tasks_table(tasks))


@command(app, "show")
def show(desk: Desk, task: Id, wait: Wait = False) -> None:
    """Show a task with its run at each site."""
    from runnel.cli.task_view import task_parts

    shown = desk.network.tasks.show(task)
    if wait:
        _follow(desk, shown, None)
    else:
        desk.answer(shown.raw, lambda: task_parts(shown))


@command(app, "logs")
def logs(desk: Desk, task: Id, site: Site = None) -> None:
    """Show what a task's runs wrote."""
    runs = _chosen(desk.network.tasks.show(task), site)
    if desk.as_json:
        desk.write_json([{**line.raw, "site": each.site} for each in runs for line in each.logs()])
        return
    for each in runs:
        for line in each.logs():
            moment = line.at.astimezone().strftime("%H:%M:%S")
            desk.say(f"{moment} {each.site} {line.stream}: {line.text}")


@command(app, "results")
def results(desk: Desk, task: Id, output: Output = None, site: Site = None) -> None:
    """Download the result files of a task's runs, each site's into a folder of its name."""
    from runnel.cli.task_view import runs_table

    shown = desk.network.tasks.show(task)
    runs = _chosen(shown, site)
    if output is None:
        desk.answer([each.raw for each in runs], lambda: runs_table(runs))
    else:
        saved = _save(desk, runs, output)
        if not saved:
            states = ", ".join(f"{each.site} {each.state}" for each in runs)
            raise NotFound(f"There are no result files of {shown.task}: {states}.")
        desk.answer(saved, lambda: "\n".join(str(each["path"]) for each in saved))


@command(app, "cancel")
def cancel(desk: Desk, task: Id) -> None:
    """End what has not ended of a task."""
    ended = desk.network.tasks.cancel(task)
    if desk.as_json:
        desk.write_json(ended.raw)
    else:
        desk.say(f"{ended.task} is {ended.status}.")


@command(app, "approve")
def approve(desk: Desk, task: Id, site: Site = None, reason: Reason = "") -> None:
    """Let sites give out results that await release, where their policy listens to you."""
    _decide(desk, task, site, release=True, reason=reason)


@command(app, "reject")
def reject(desk: Desk, task: Id, site: Site = None, reason: Reason = "") -> None:
    """Have results that await release stay at their sites, where their policy listens to you."""
    _decide(desk, task, site, release=False, reason=reason)


def _decide(desk: Desk, task: str, site: list[str] | None, *, release: bool, reason: str) -> None:
    shown = desk.network.tasks.show(task)
    waiting = [each for each in _chosen(shown, site) if each.state == "awaiting-release"]
    if not waiting:
        raise NotFound(f"No run of {shown.task}{' at these sites' if site else ''} awaits release.")
    told = [desk.network.tasks.release(each, release=release, reason=reason) for each in waiting]
    if desk.as_json:
        desk.write_json([each.raw for each in told])
    else:
        desk.say(f"Told {', '.join(each.site for each in told)} that you {'approve' if release else 'reject'}.")
        desk.say(f"Where the policy listens to you (remote_review) that decides: runnel task show {shown.task}")


def _follow(
    desk: Desk, task: Task, output: Path | None, *, combine: str | None = None, minimum: int | None = None
) -> None:
    """Follow a task to its end; the exit status tells whether all of it is done, or ``minimum`` sites are."""
    from runnel.cli.task_view import TaskProgress, event_line, runs_table
    from runnel.sdk.combining import site_results

    progress = TaskProgress(task)
    events = task.watch()
    desk.console.print(f"task {task.task}", markup=False, soft_wrap=True)
    try:
        if task.ended:
            events = iter(())
        if desk.console.is_terminal:
            from rich.live import Live

            with Live(progress, console=desk.console, refresh_per_second=8, transient=True):
                for event in events:
                    progress.take(event)
        else:
            for event in events:
                line = event_line(event)
                if line is not None:
                    desk.console.print(line, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        told = f"{task.task} goes on. Look: runnel task show {task.task}   Cancel it: runnel task cancel {task.task}"
        desk.aside.print(told, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    ended = task.refresh()
    if output is not None:
        _save(desk, ended.runs, output)
    desk.answer(ended.raw, lambda: runs_table(ended.runs))
    if minimum is None:
        if ended.status != "done":
            raise typer.Exit(1)
        return
    results = site_results(ended, minimum)
    if combine is not None and output is not None:
        _combine(desk, results, combine, output)


def _combine(desk: Desk, results: SiteResults, combine: str, output: Path) -> None:
    """Unpack what the sites gave below ``output`` and combine it."""
    from runnel.sdk.combining import put_together, run_script

    parts = results.save(output / "sites")
    if results.failed:
        desk.aside.print(f"Combined without {', '.join(results.failed)}.", markup=False, soft_wrap=True)
    if combine == "csv":
        for path in put_together(parts, output / "combined"):
            desk.aside.print(str(path), markup=False, soft_wrap=True)
    else:
        run_script(Path(combine), parts, output)


def _save(desk: Desk, runs: tuple[Run, ...], output: Path) -> list[dict[str, Any]]:
    """Write all result files below ``output``; return what was written where."""
    saved = []
    for each in runs:
        for file in each.files:
            # Names that come from elsewhere lead to nowhere else.
            folder, name = output / valid_name(each.site), valid_name(file.name)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / (f"{name}.zip" if file.media_type == "application/zip" else name)
            with desk.transfer(f"{each.site} {file.name}") as progress:
                each.save(file.name, path, progress=progress)
            saved.append({"site": each.site, "file": file.name, "path": str(path), "size_bytes": file.size_bytes})
    return saved


def _chosen(task: Task, sites: list[str] | None) -> tuple[Run, ...]:
    return task.runs if not sites else tuple(task.at(site) for site in sites)
