// The network as a picture: the reducer, the combiners below it, the clients below them.

import { h } from "./dom.js";
import { plural } from "./format.js";
import { lookOf } from "./state.js";

const HUB = { width: 156, height: 52 };
const CHIP = { width: 118, height: 40, gap: 8 };
const WIDEST_CHIP = 146;
const DOT = { width: 14, height: 14, gap: 4 };
const PAD = 10;
const LABEL = 18;
const COLUMN_GAP = 48;
const LANE_GAP = 18;
const NARROW = 640;
const INDENT = 18;
// So many clients below one hub are named; more are dots, whose names are in their titles and in the table of nodes.
const NAMED = 48;

/** Who is below whom: {name, kind, clients, hubs}, and the nodes that are away. A node whose way up is not known, or
 * leads in a circle while nodes move, is shown at the reducer. */
export function tree(nodes) {
  const root = { name: "reducer", kind: "reducer", clients: [], hubs: [] };
  const attached = nodes.filter((node) => node.status === "attached");
  const hubs = new Map();
  for (const node of attached) if (node.kind === "combiner") hubs.set(node.name, { ...node, clients: [], hubs: [] });
  const above = (hub) => hubs.get(hub.attached_to) ?? null;
  const reachesRoot = (hub) => {
    const seen = new Set();
    for (let at = hub; at; at = above(at)) {
      if (seen.has(at)) return false;
      seen.add(at);
    }
    return true;
  };
  for (const hub of hubs.values()) (reachesRoot(hub) ? (above(hub) ?? root) : root).hubs.push(hub);
  for (const node of attached) if (node.kind !== "combiner") (hubs.get(node.attached_to) ?? root).clients.push(node);
  return { root, away: nodes.filter((node) => node.status !== "attached") };
}

/** Where everything is drawn in `width` pixels: {width, height, hubs, groups, links}. */
export function layout({ root, away }, width) {
  const place = { width, height: 0, hubs: [], groups: [], links: [] };
  const deepest = depthOf(root);
  const clientsAt = deepest * (HUB.width + COLUMN_GAP);
  const wide = width >= NARROW && width - clientsAt >= 2 * CHIP.width + 3 * PAD;
  place.height = wide ? laneBeside(place, root, 0, 0, clientsAt) : laneBelow(place, root, 0, 0);
  if (away.length) {
    const y = place.height + LANE_GAP;
    const x = wide ? clientsAt : 0;
    place.height = y + group(place, away, x, y, width - x, `away: ${away.length}`).height;
  }
  return place;
}

function depthOf(hub) {
  return 1 + Math.max(0, ...hub.hubs.map(depthOf));
}

/** Hubs in columns, their clients at the right; returns the lower end. */
function laneBeside(place, hub, depth, y, clientsAt) {
  const x = depth * (HUB.width + COLUMN_GAP);
  const below = [];
  let end = y;
  if (hub.clients.length || (!hub.hubs.length && depth)) {
    const made = group(place, hub.clients, clientsAt, end, place.width - clientsAt);
    below.push({ x: made.x, y: made.y + made.height / 2, active: made.clients });
    end += made.height + LANE_GAP;
  }
  for (const child of hub.hubs) {
    const lower = laneBeside(place, child, depth + 1, end, clientsAt);
    const drawn = place.hubs.find((each) => each.hub === child);
    below.push({ x: drawn.x, y: drawn.y + HUB.height / 2, active: everyone(child) });
    end = lower + LANE_GAP;
  }
  end = Math.max(end - LANE_GAP, y + HUB.height);
  const top = (y + end - HUB.height) / 2;
  place.hubs.push({ hub, x, y: top, width: HUB.width });
  const from = { x: x + HUB.width, y: top + HUB.height / 2 };
  for (const to of below) {
    const bend = Math.min(COLUMN_GAP, to.x - from.x) / 2;
    const turn = to.x - bend;
    const d = `M${from.x} ${from.y}H${turn - bend}C${turn} ${from.y} ${turn} ${to.y} ${to.x} ${to.y}`;
    place.links.push({ d, clients: to.active });
  }
  return end;
}

/** Hubs and clients below each other, for narrow screens; returns the lower end. */
function laneBelow(place, hub, depth, y) {
  const x = depth * INDENT;
  place.hubs.push({ hub, x, y, width: place.width - x });
  let end = y + HUB.height;
  const down = (toY, clients) => place.links.push({ d: `M${x + 8} ${y + HUB.height}V${toY}H${x + INDENT}`, clients });
  if (hub.clients.length) {
    const made = group(place, hub.clients, x + INDENT, end + PAD, place.width - x - INDENT);
    down(made.y + 14, made.clients);
    end = made.y + made.height;
  }
  for (const child of hub.hubs) {
    const top = end + LANE_GAP;
    end = laneBelow(place, child, depth + 1, top);
    down(top + HUB.height / 2, everyone(child));
  }
  return end;
}

function everyone(hub) {
  return [...hub.clients, ...hub.hubs.flatMap(everyone)];
}

function group(place, nodes, x, y, width, label = null) {
  const named = nodes.length <= NAMED;
  const size = named ? CHIP : DOT;
  const perRow = Math.max(1, Math.floor((width - 2 * PAD + size.gap) / (size.width + size.gap)));
  const room = (width - 2 * PAD + size.gap) / perRow - size.gap;
  const chipWidth = named ? Math.floor(Math.min(WIDEST_CHIP, room)) : size.width;
  const top = y + PAD + (label || !named ? LABEL : 0);
  const rows = Math.ceil(nodes.length / perRow);
  const inner = rows ? rows * (size.height + size.gap) - size.gap : LABEL;
  const items = nodes.map((node, index) => ({
    node, named,
    x: x + PAD + (index % perRow) * (chipWidth + size.gap),
    y: top + Math.floor(index / perRow) * (size.height + size.gap),
    width: chipWidth,
  }));
  const said = label ?? (nodes.length ? (named ? null : plural(nodes.length, "client")) : "no clients yet");
  const made = { x, y, width, height: top - y + inner + PAD, items, label: said, clients: nodes, away: label !== null };
  place.groups.push(made);
  return made;
}

/**
 * Draw the network.
 *
 * @param {object[]} nodes
 * @param {Map<string, {stage: string}>} doing what each client does now
 * @param {string} reducerDoes what the reducer does now
 * @param {number} width in pixels
 */
export function picture({ nodes, doing, reducerDoes, width }) {
  const grown = tree(nodes);
  const place = layout(grown, Math.max(width, 280));
  const clients = nodes.filter((node) => node.kind === "client" && node.status === "attached").length;
  const combiners = nodes.filter((node) => node.kind === "combiner" && node.status === "attached").length;
  return h(
    "svg",
    {
      class: "picture", width: place.width, height: place.height + 2, viewBox: `0 -1 ${place.width} ${place.height + 2}`,
      role: "img",
      "aria-label": `Reducer with ${plural(combiners, "combiner")} and ${plural(clients, "client")}, ${grown.away.length} away`
        + ". The table of nodes says the same in words.",
    },
    place.links.map((link, index) =>
      h("path", { key: `link ${index}`, class: `link${link.clients.some((c) => works(doing, c)) ? " active" : ""}`, d: link.d }),
    ),
    place.groups.map((each, index) => drawGroup(each, index, doing)),
    place.hubs.map((each) => drawHub(each, reducerDoes)),
  );
}

function works(doing, client) {
  const stage = doing.get(client.name)?.stage;
  return stage !== undefined && !["counted", "failed", "awaiting"].includes(lookOf(stage));
}

function drawHub({ hub, x, y, width }, reducerDoes) {
  const isReducer = hub.kind === "reducer";
  const below = everyone(hub).length;
  const subtitle = isReducer ? reducerDoes || "idle" : plural(below, "client");
  return h(
    "g",
    { key: `hub ${isReducer ? "" : hub.name}`, class: `hub ${isReducer ? "reducer" : "combiner"}` },
    h("title", null, isReducer ? `reducer, ${subtitle}` : `combiner ${hub.name}, ${subtitle}`),
    h("rect", { x, y, width, height: HUB.height, rx: 10 }),
    h("text", { class: "name", x: x + 14, y: y + 22 }, fitting(isReducer ? "Reducer" : hub.name, width - 24, 8)),
    h("text", { class: "what", x: x + 14, y: y + 39 }, isReducer ? subtitle : `combiner · ${subtitle}`),
  );
}

function drawGroup(each, index, doing) {
  return h(
    "g",
    { key: `group ${index}`, class: each.away ? "group away" : "group" },
    h("rect", { class: "frame", x: each.x, y: each.y, width: each.width, height: each.height, rx: 10 }),
    each.label && h("text", { class: "what", x: each.x + PAD + 2, y: each.y + 19 }, each.label),
    each.items.map((item) => drawClient(item, each.away, doing)),
  );
}

function drawClient({ node, named, x, y, width }, away, doing) {
  const stage = away ? "away" : (doing.get(node.name)?.stage ?? "idle");
  const look = stage === "idle" || stage === "away" ? stage : lookOf(stage);
  const title = h("title", null, `${node.name}: ${away ? `${node.kind}, away` : stage}`);
  const key = `client ${node.name}`;
  if (!named) {
    return h("g", { key, class: `client ${look}` }, title, h("rect", { class: "dot", x, y, width, height: DOT.height, rx: 4 }));
  }
  return h(
    "g",
    { key, class: `client ${look}` },
    title,
    h("rect", { class: "box", x, y, width, height: CHIP.height, rx: 8 }),
    h("circle", { class: "light", cx: x + 13, cy: y + CHIP.height / 2, r: 4.5 }),
    h("text", { class: "name", x: x + 25, y: y + 17 }, fitting(node.name, width - 32, 7)),
    h("text", { class: "what", x: x + 25, y: y + 32 }, fitting(away && node.kind !== "client" ? node.kind : stage, width - 32, 6)),
  );
}

/** Cut a text to about `width` pixels; the whole of it is in the title. */
function fitting(text, width, perLetter) {
  const most = Math.max(3, Math.floor(width / perLetter));
  const letters = [...text];
  return letters.length <= most ? text : `${letters.slice(0, most - 1).join("")}…`;
}
