// The runs of a task as rows of a table.

import { h } from "./dom.js";
import { bytes, number, seconds } from "./format.js";
import { status, table } from "./parts.js";
import { hasEnded } from "./run_states.js";
import { stepsOf, timeBar, total } from "./run_timeline.js";

const COLUMNS = [
  { name: "Site" }, { name: "State" }, { name: "Exit code", class: "number wide" }, { name: "Took", class: "number wide" },
  { name: "Time", class: "wide" }, { name: "Results", class: "wide" },
];

/**
 * @param {object} state of the network
 * @param {object} task
 * @param {object[]} runs those to show
 * @param {{chosen: string | null, query: (changes: object) => string}} options `query` gives the address of a choice
 */
export function runsTable(state, task, runs, { chosen, query }) {
  const away = new Set((state.nodes ?? []).filter((node) => node.status === "away").map((node) => node.name));
  const longest = runs.reduce((most, run) => Math.max(most, total(stepsOf(run, []))), 0);
  return table(
    "Sites",
    COLUMNS,
    runs.map((run) => row(run, { chosen, query, away: away.has(run.site), told: state.stageOf(task.task, run.site), longest })),
  );
}

function row(run, { chosen, query, away, told, longest }) {
  const open = run.run === chosen;
  return h(
    "tr",
    { key: run.run, "aria-current": open ? "true" : null },
    h("th", { scope: "row" }, h("a", { href: query({ run: open ? null : run.run }), "aria-expanded": String(open) }, `${run.site} ${open ? "▾" : "▸"}`)),
    h("td", null, status(run.state), " ", h("span", { class: hasEnded(run.state) ? "failure-text line" : "mute line" }, why(run, away, told))),
    h("td", { class: "number wide" }, number(run.exit_code)),
    h("td", { class: "number wide" }, took(run)),
    h("td", { class: "wide" }, timeBar(stepsOf(run, []), longest)),
    h("td", { class: "wide results" }, results(run)),
  );
}

/** Why it is where it is, in one line. */
export function why(run, away, told) {
  if (hasEnded(run.state)) return (run.error || run.error_code || "").split("\n")[0];
  if (away) return "the site is away; it goes on when it is back";
  const [state, detail] = cut(told);
  return state === run.state ? detail : run.detail;
}

function cut(told) {
  const at = (told ?? "").indexOf(": ");
  return at < 0 ? [null, ""] : [told.slice(0, at), told.slice(at + 2)];
}

function took(run) {
  if (!run.started_at || !run.finished_at) return "";
  return seconds((new Date(run.finished_at) - new Date(run.started_at)) / 1000);
}

function results({ files, removed_at: removed }) {
  if (!files.length) return "";
  const size = bytes(files.reduce((sum, file) => sum + file.size_bytes, 0));
  return removed ? h("span", { class: "mute" }, "removed") : `${files.length} · ${size}`;
}
