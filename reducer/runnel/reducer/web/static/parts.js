// Small things that several views are made of.

import { h } from "./dom.js";

/** A chip with a status word; its colour only repeats what the word says. */
export function status(word) {
  return h("span", { class: `chip status-${known(word)}` }, word);
}

const STATUSES = new Set([
  "running", "finished", "stopped", "failed", "attached", "away", "counted", "awaiting", "late", "open", "committed", "revoked",
  "expired", "valid", "queued", "assigned", "preparing", "awaiting-release", "pushing", "done", "rejected", "cancelled",
]);

function known(word) {
  return STATUSES.has(word) ? word : "other";
}

/**
 * A table that scrolls sideways on its own when there is little room.
 *
 * @param {string} label is read out, and tells what it lists.
 * @param {{name: string, class?: string}[]} columns
 * @param {object[]} rows elements `tr`
 * @param {object} props more of what scrolls
 */
export function table(label, columns, rows, props = {}) {
  return h(
    "div",
    { class: "scroll", role: "region", "aria-label": label, tabindex: "0", ...props },
    h(
      "table",
      { "aria-label": label },
      h("thead", null, h("tr", null, columns.map((column) => h("th", { scope: "col", class: column.class }, column.name)))),
      h("tbody", null, rows),
    ),
  );
}

/** Terms and what they are; those without a value are left out. */
export function facts(pairs) {
  const there = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h(
    "dl",
    { class: "facts" },
    there.map(([term, value]) => h("div", { key: term }, h("dt", null, term), h("dd", null, value))),
  );
}

/** What stands where nothing is yet: why, and what to type. */
export function empty(text, ...commands) {
  return h(
    "div",
    { class: "empty" },
    h("p", null, text),
    commands.map((command) => h("pre", { class: "command", tabindex: "0" }, h("code", null, command))),
  );
}

/** What stands where something is still asked for, or could not be had. */
export function pending(resource) {
  if (resource?.problem) {
    return h("p", { class: "failure-text", role: "alert" }, resource.problem.message, " ", resource.problem.hint);
  }
  return h("p", { class: "mute" }, "Asking …");
}

export function more(listing) {
  return listing.value?.next
    ? h("button", { type: "button", onclick: () => listing.more() }, "Show more")
    : null;
}

/** A button that saves a file. */
export function download(app, path, filename, text = "Download") {
  const save = () => app.attempt(() => app.api.download(path, filename));
  return h("button", { type: "button", onclick: save, "aria-label": `Download ${filename}` }, text);
}

/** What has to be added to a command so that it asks this network. */
export function commandEnd(state) {
  const origin = window.location.origin;
  const url = origin === "http://127.0.0.1:7480" ? "" : ` --url ${origin}`;
  return url + (state.bearings?.insecure === false ? " --token TOKEN" : "");
}

/** What has to be added to the command of a client or combiner. */
export function joinEnd(state) {
  return state.bearings?.insecure === false ? " --token TOKEN" : " --insecure";
}

export function sessionLink(id, text = id) {
  return h("a", { href: `#/sessions/${encodeURIComponent(id)}` }, text);
}

export function modelLink(id, text = id) {
  return id ? h("a", { href: `#/models/${encodeURIComponent(id)}`, class: "code" }, text) : null;
}
