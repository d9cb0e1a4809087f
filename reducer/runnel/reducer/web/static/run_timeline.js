// When a run came into which state, and how long it stayed there.

import { h } from "./dom.js";
import { seconds, time } from "./format.js";
import { hasEnded, swatch } from "./run_states.js";

/**
 * The states that a run was in, oldest first: {state, at, s}; `s` is null for the one that it is in.
 *
 * @param {object} run
 * @param {{state: string, at: string}[]} moves that were told of it, oldest first
 */
export function stepsOf(run, moves) {
  const known = [{ state: "queued", at: run.created_at }, ...moves];
  if (!moves.length && run.started_at) known.push({ state: "begun", at: run.started_at });
  if (run.finished_at && !hasEnded(known.at(-1).state)) known.push({ state: run.state, at: run.finished_at });
  return known.map((step, index) => {
    const next = known[index + 1];
    return { ...step, s: next ? Math.max(0, (new Date(next.at) - new Date(step.at)) / 1000) : null };
  });
}

/** How many seconds the steps took that are over. */
export function total(steps) {
  return steps.reduce((sum, { s }) => sum + (s ?? 0), 0);
}

/** A bar of how long each step took, null before the first is over; `longest` seconds fill it. */
export function timeBar(steps, longest, look = "strip") {
  const over = steps.filter(({ s }) => s);
  if (!over.length) return null;
  const said = over.map(({ state, s }) => `${state} ${seconds(s)}`).join(", ");
  let x = 0;
  return h(
    "svg",
    { class: look, role: "img", "aria-label": said, viewBox: "0 0 100 10", preserveAspectRatio: "none" },
    h("title", null, said),
    over.map(({ state, s }) => {
      const from = x;
      x += (s / longest) * 100;
      return h("rect", { class: `run-${state}`, x: from, y: 0, width: x - from, height: 10 });
    }),
  );
}

/** The bar, and the steps as a list. */
export function timeline(steps) {
  return [
    timeBar(steps, total(steps), "strip large"),
    h(
      "ol",
      { class: "steps", "aria-label": "How it went" },
      steps.map(({ state, at, s }, index) =>
        h("li", { key: index }, swatch(state), h("strong", null, state), " ", h("span", { class: "mute" }, s === null ? [hasEnded(state) ? "at " : "since ", time(at)] : seconds(s))),
      ),
    ),
  ];
}
