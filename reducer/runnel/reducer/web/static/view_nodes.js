import { h } from "./dom.js";
import { time } from "./format.js";
import { empty, joinEnd, sessionLink, status, table } from "./parts.js";

const COLUMNS = [
  { name: "Name" }, { name: "Kind" }, { name: "Status" }, { name: "Attached to" }, { name: "Does now" },
  { name: "Version", class: "wide" }, { name: "Platform", class: "wide" }, { name: "Last seen", class: "wide" },
];

/** Clients and combiners, those that are away included. */
export class NodesView {
  title = "Nodes";

  constructor(app) {
    this.app = app;
  }

  render() {
    const { state } = this.app;
    const doing = state.doing();
    return h(
      "section",
      { class: "card" },
      h("h1", null, "Nodes"),
      state.nodes === null && h("p", { class: "mute" }, "Asking …"),
      state.nodes?.length === 0 &&
        empty(
          "Nobody has attached yet:",
          `runnel client --network ${state.status?.rpc_address ?? "HOST:PORT"} --name site-1 --data default=PATH${joinEnd(state)}`,
        ),
      state.nodes?.length > 0 && table("Nodes", COLUMNS, state.nodes.map((node) => row(node, doing.get(node.name)))),
    );
  }
}

function row(node, does) {
  const now = does && node.status === "attached" ? [does.stage, " · ", sessionLink(does.session, `round ${does.round}`)] : "";
  return h(
    "tr",
    { key: node.name, class: node.status === "away" ? "faint" : null },
    h("th", { scope: "row" }, node.name),
    h("td", null, node.kind),
    h("td", null, status(node.status)),
    h("td", null, node.attached_to ?? ""),
    h("td", null, now),
    h("td", { class: "wide" }, node.version),
    h("td", { class: "wide" }, node.platform),
    h("td", { class: "wide" }, time(node.last_seen_at)),
  );
}
