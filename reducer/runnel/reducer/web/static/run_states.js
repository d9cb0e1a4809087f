// The states of runs: their order, how many are in which, and the strip that shows it.

import { h } from "./dom.js";
import { short } from "./format.js";

/** In the order in which a run goes through them; those of the end last. */
export const RUN_STATES = [
  "queued", "assigned", "preparing", "running", "awaiting-release", "pushing", "done", "failed", "rejected", "cancelled",
];
const ENDED = new Set(["done", "failed", "rejected", "cancelled"]);
// What people look for comes first in a strip: what came well, what goes on, what did not come.
const DRAWN = [
  "done", "pushing", "awaiting-release", "running", "preparing", "assigned", "queued", "failed", "rejected", "cancelled",
];

export function hasEnded(state) {
  return ENDED.has(state);
}

/** Whether a run that is `before` may become `after`: forward only, and an end is for ever. */
export function moves(before, after) {
  const rank = (state) => (ENDED.has(state) ? RUN_STATES.length : RUN_STATES.indexOf(state));
  return rank(after) > rank(before);
}

/** How many runs there are, and how many have ended. */
export function progressOf(counts) {
  const numbers = Object.entries(counts);
  const sum = (found) => found.reduce((total, [, count]) => total + count, 0);
  return { all: sum(numbers), ended: sum(numbers.filter(([state]) => ENDED.has(state))) };
}

export function countsOf(runs) {
  const counts = {};
  for (const { state } of runs) counts[state] = (counts[state] ?? 0) + 1;
  return counts;
}

/** "2 done, 1 failed", in the order of the strip. */
export function inWords(counts) {
  return there(counts).map(([state, count]) => `${short(count)} ${state}`).join(", ");
}

function there(counts) {
  return DRAWN.filter((state) => counts[state]).map((state) => [state, counts[state]]);
}

/** One bar, with a part for each state that is as long as it has runs. */
export function strip(counts) {
  const { all } = progressOf(counts);
  const said = inWords(counts) || "no runs";
  let x = 0;
  return h(
    "svg",
    { class: "strip", role: "img", "aria-label": said, viewBox: "0 0 100 10", preserveAspectRatio: "none" },
    h("title", null, said),
    there(counts).map(([state, count]) => {
      const from = x;
      x += (count / all) * 100;
      return h("rect", { class: `run-${state}`, x: from, y: 0, width: x - from, height: 10 });
    }),
  );
}

export function swatch(state) {
  return h("span", { class: `swatch run-${RUN_STATES.includes(state) ? state : "queued"}`, "aria-hidden": "true" });
}

export function taskLink(id, text = id) {
  return h("a", { href: `#/tasks/${encodeURIComponent(id)}` }, text);
}
