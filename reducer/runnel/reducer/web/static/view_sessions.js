import { h } from "./dom.js";
import { commandEnd, empty } from "./parts.js";
import { sessionsTable } from "./session_rows.js";

/** All sessions, newest first. */
export class SessionsView {
  title = "Sessions";

  constructor(app) {
    this.app = app;
  }

  render() {
    const { state, loader } = this.app;
    const more = () => loader.moreSessions();
    return h(
      "section",
      { class: "card" },
      h("h1", null, "Sessions"),
      state.listed === null && h("p", { class: "mute" }, "Asking …"),
      state.listed?.length === 0 && noSessions(state),
      state.listed?.length > 0 && sessionsTable(state, state.list, "Sessions"),
      state.moreSessions && h("button", { type: "button", onclick: more }, "Show more"),
    );
  }
}

export function noSessions(state) {
  return empty(
    "No session yet. A compute package and a model to start from make one:",
    `runnel session start --package PACKAGE --seed MODEL --rounds 10${commandEnd(state)}`,
  );
}
