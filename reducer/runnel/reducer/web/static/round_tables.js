// The rounds of a session, and what each client gave to one of them, as tables.

import { bar, legend, total } from "./chart.js";
import { h } from "./dom.js";
import { number, seconds, short } from "./format.js";
import { modelLink, status, table } from "./parts.js";
import { metricNames, ordered, PHASES } from "./state.js";

const SPENT = ["prepare", "fetch", "run", "push"];
const METRICS_SHOWN = 3;

/**
 * @param {object} session
 * @param {object[]} rounds those to show, newest first
 * @param {number | null} chosen the round whose clients are shown
 */
export function roundsTable(session, rounds, chosen) {
  const names = metricNames(session.rounds, session).slice(0, METRICS_SHOWN);
  const longest = Math.max(...rounds.map((round) => total(round.phases)));
  const waits = rounds.some((round) => round.awaiting);
  const columns = [
    { name: "Round" }, { name: "Updates", class: "number" }, { name: "Late", class: "number" }, { name: "Failed", class: "number" },
    ...(waits ? [{ name: "Awaiting", class: "number" }] : []),
    ...names.map((name) => ({ name, class: "number" })),
    { name: "Seconds", class: "number" }, { name: "By phase" }, { name: "Model" },
  ];
  const rows = rounds.map((round) =>
    h(
      "tr",
      { key: round.round, "aria-current": round.round === chosen ? "true" : null },
      h("th", { scope: "row" }, roundLink(session, round, chosen), round.status === "committed" ? null : [" ", h("span", { class: "mute" }, round.status)]),
      count(round.updates),
      count(round.late, "late"),
      count(round.failed, "failed"),
      waits ? count(round.awaiting, "late") : null,
      names.map((name) => h("td", { class: "number" }, number(round.metrics[name]))),
      h("td", { class: "number" }, seconds(round.seconds)),
      h("td", null, bar(round.phases, PHASES, longest)),
      h("td", null, modelLink(round.model)),
    ),
  );
  return [table("Rounds", columns, rows), legend(PHASES)];
}

function roundLink(session, round, chosen) {
  const open = round.round === chosen;
  const here = `#/sessions/${encodeURIComponent(session.session)}`;
  return h(
    "a",
    { href: open ? here : `${here}?round=${round.round}`, "aria-expanded": String(open), "aria-label": `Clients of round ${round.round}` },
    `${round.round} ${open ? "▾" : "▸"}`,
  );
}

function count(value, word = null) {
  return h("td", { class: `number${word && value ? ` is-${word}` : ""}` }, short(value));
}

/** What each client gave: weight, metrics, seconds by stage, error. */
export function clientsTable(contributions) {
  const longest = Math.max(...contributions.map((each) => total(each.elapsed_s)));
  const columns = [
    { name: "Client" }, { name: "Work" }, { name: "Part" }, { name: "Weight", class: "number" }, { name: "Metrics" },
    { name: "Seconds", class: "number" }, { name: "By stage" }, { name: "Error" },
  ];
  const rows = contributions.map((each) =>
    h(
      "tr",
      { key: `${each.work} ${each.client}` },
      h("th", { scope: "row" }, each.client),
      h("td", null, each.work),
      h("td", null, status(each.status)),
      h("td", { class: "number" }, number(each.weight)),
      h("td", null, metrics(each)),
      h("td", { class: "number" }, total(each.elapsed_s) ? seconds(total(each.elapsed_s)) : ""),
      h("td", null, bar(each.elapsed_s, SPENT, longest)),
      h("td", null, failure(each)),
    ),
  );
  return [table("Clients of the round", columns, rows), legend(SPENT)];
}

function metrics({ metrics: measured, extra }) {
  const told = Object.keys(extra ?? {});
  return [
    ordered(Object.keys(measured)).map((name) =>
      h("span", { key: `metric ${name}`, class: "metric" }, h("span", { class: "mute" }, `${name} `), number(measured[name])),
    ),
    told.length > 0 &&
      h("details", { key: "extra" }, h("summary", null, `${told.length} more`), h("pre", null, JSON.stringify(extra, null, 2))),
  ];
}

function failure({ error, error_code: code, log_tail: tail }) {
  if (!error && !code) return null;
  return h(
    "details",
    null,
    h("summary", { class: "failure-text" }, (error || code).split("\n")[0]),
    h("pre", null, error || code),
    tail && [h("p", { class: "mute" }, "The last lines of its log:"), h("pre", { class: "tail" }, tail)],
  );
}
