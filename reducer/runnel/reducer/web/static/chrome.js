// What stands around every view: name, ways, connection, who looks, what went wrong. And the way in.

import { h } from "./dom.js";

const WAYS = [
  ["", "Network"],
  ["sessions", "Sessions"],
  ["tasks", "Tasks"],
  ["models", "Models"],
  ["packages", "Packages"],
  ["nodes", "Nodes"],
];

export function chrome(app, content) {
  const { state } = app;
  const here = (app.path ?? "").split("/")[0];
  const ways = state.isOperator ? [...WAYS, ["tokens", "Tokens"]] : WAYS;
  return [
    h("button", { key: "skip", type: "button", class: "skip", onclick: toContent }, "Skip to the content"),
    h(
      "header",
      { key: "header", class: "top" },
      h("a", { class: "brand", href: "#/" }, logo(), "Runnel"),
      h(
        "nav",
        { "aria-label": "Main" },
        ways.map(([path, name]) =>
          h("a", { key: path, href: `#/${path}`, "aria-current": path === here ? "page" : null }, name),
        ),
      ),
      h("div", { class: "who" }, connection(state), who(app)),
    ),
    state.bearings?.insecure &&
      h(
        "p",
        { key: "insecure", class: "banner warning", role: "note" },
        h("strong", null, "Insecure network."),
        " No sign-in and no encryption: whoever reaches this address may do everything.",
      ),
    h("main", { key: "main", id: "main", tabindex: "-1" }, notice(app), h("div", { key: app.path, class: "view" }, content)),
    h(
      "footer",
      { key: "footer" },
      state.status && h("span", null, `Runnel ${state.status.version}`),
      h("a", { href: "docs" }, "REST interface"),
    ),
  ];
}

function connection(state) {
  const away = state.problem !== null || state.wasLive;
  const text = state.live ? "live" : away ? "reconnecting" : "connecting";
  const why = state.live ? "Shown as it happens" : (state.problem?.message ?? "");
  return h("span", { class: `connection ${text}`, role: "status", title: why }, text);
}

function who(app) {
  const { bearings } = app.state;
  if (!bearings) return null;
  if (bearings.insecure) return h("span", { class: "badge warning" }, "insecure");
  return [
    h("span", { class: "badge", title: `organisation: ${bearings.organisation}` }, bearings.role),
    h("button", { type: "button", class: "plain", onclick: () => app.signOut() }, "Sign out"),
  ];
}

function notice(app) {
  const problem = app.notice ?? refusedOf(app.state.problem);
  return h(
    "div",
    { key: "notice", role: "alert", class: problem ? "banner failure" : "no-banner" },
    problem && [
      h("span", null, h("strong", null, problem.message), problem.hint ? ` ${problem.hint}` : ""),
      app.notice &&
        h(
          "button",
          {
            type: "button",
            class: "plain",
            onclick: () => {
              app.notice = null;
              app.redraw();
            },
          },
          "Dismiss",
        ),
    ],
  );
}

function refusedOf(problem) {
  return problem && problem.status !== 401 ? problem : null;
}

function toContent() {
  document.getElementById("main").focus();
}

function focus(element) {
  element.focus();
}

/** The form that asks for a token. */
export function signIn(app) {
  const submit = (event) => {
    event.preventDefault();
    const token = new FormData(event.target).get("token").trim();
    if (token) app.signIn(token);
  };
  return h(
    "main",
    { key: "sign-in", id: "main", class: "sign-in" },
    h(
      "form",
      { class: "card", onsubmit: submit, autocomplete: "off" },
      h("div", { class: "brand" }, logo(), "Runnel"),
      h("h1", null, "Sign in"),
      h("p", { role: "alert" }, app.asking.detail),
      h("label", { for: "token" }, "Token"),
      h("input", {
        id: "token", name: "token", type: "password", required: true, autofocus: true, autocomplete: "off",
        spellcheck: "false", ref: focus,
      }),
      h("button", { type: "submit", class: "primary" }, "Sign in"),
      h(
        "p",
        { class: "hint" },
        "It is kept in this tab only, until you close it. The first operator’s token lies in ",
        h("code", null, "operator.token"),
        " in the reducer’s state folder; others come of ",
        h("code", null, "runnel token create --role viewer"),
        ".",
      ),
    ),
  );
}

function logo() {
  return h(
    "svg",
    { viewBox: "0 0 32 32", class: "logo", "aria-hidden": "true" },
    h("rect", { width: 32, height: 32, rx: 7 }),
    h("path", { d: "M16 5v8M6 27c0-8 10-6 10-14 0 8 10 6 10 14M16 13v14" }),
  );
}
