// Sessions as rows of a table, for the views that list them.

import { h } from "./dom.js";
import { number, time } from "./format.js";
import { sessionLink, status, table } from "./parts.js";
import { committed, newestMetric } from "./state.js";

const COLUMNS = [
  { name: "Session" }, { name: "Status" }, { name: "Rounds" }, { name: "Newest metric" }, { name: "Strategy", class: "wide" },
  { name: "Started", class: "wide" },
];

export function sessionsTable(state, sessions, label) {
  return table(label, COLUMNS, sessions.map((session) => row(state, session)));
}

function row(state, session) {
  return h(
    "tr",
    { key: session.session },
    h("td", null, h("div", { class: "two" }, sessionLink(session.session, session.name || session.session),
      session.name ? h("code", { class: "mute" }, session.session) : null)),
    h("td", null, status(session.status), " ", h("span", { class: "mute" }, present(session))),
    h("td", null, roundsOf(state, session)),
    h("td", null, metricOf(session)),
    h("td", { class: "wide" }, session.config.strategy),
    h("td", { class: "wide" }, time(session.created_at)),
  );
}

function present(session) {
  return session.status === "running" && session.phase !== "running" ? session.phase : "";
}

function roundsOf(state, session) {
  // Until its rounds are read nobody knows how many there are; a guess would be a lie.
  const done = state.detailed.has(session.session) ? committed(session).length : null;
  const wanted = session.config.rounds;
  return h(
    "div",
    { class: "rounds" },
    h("span", { class: "count" }, done === null ? `… / ${wanted}` : `${done} / ${wanted}`),
    h("progress", { max: wanted, value: done ?? 0, "aria-label": `rounds of ${session.name || session.session}` }),
  );
}

function metricOf(session) {
  const newest = newestMetric(session);
  return newest ? [h("span", { class: "mute" }, `${newest[0]} `), number(newest[1])] : "";
}
