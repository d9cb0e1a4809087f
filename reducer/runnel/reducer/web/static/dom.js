// Elements as values, and one function that brings the document to them.
//
// Everything that is shown comes this way, so there is one place to look for what strangers could do with their text:
// strings become text nodes, attributes are set by name, and only functions listen to events.

const SVG = "http://www.w3.org/2000/svg";
const CHILDREN_ARE_SVG = new Set(["svg"]);
const REFUSED = new Set(["innerHTML", "outerHTML", "style", "srcdoc", "src", "action", "formaction"]);
// Only places of this page and of this server; never a scheme, so never "javascript:".
const SAFE_HREF = /^(#|docs$|\?)/;
const AS_PROPERTY = new Set(["value", "checked", "selected", "indeterminate"]);

class Wanted {
  constructor(tag, props, children) {
    this.tag = tag;
    this.props = props ?? {};
    this.children = children;
  }
}

const memory = new WeakMap(); // element → {props, listeners}

/** Describe an element: `h("td", {class: "number"}, value)`. Children: strings, numbers, elements, lists of them. */
export function h(tag, props, ...children) {
  return new Wanted(tag, props, flat(children));
}

/** Make `host` contain exactly `children`, keeping the elements (focus, scroll, input) that are wanted still. */
export function render(host, ...children) {
  bring(host, flat(children), host.namespaceURI === SVG);
}

function flat(children, into = []) {
  for (const child of children) {
    if (child === null || child === undefined || typeof child === "boolean") continue;
    if (Array.isArray(child)) flat(child, into);
    // An object that is not of h() is data: it is shown as text, however much it looks like an element.
    else into.push(child instanceof Wanted ? child : String(child));
  }
  return into;
}

function bring(parent, wanted, inSvg) {
  const keys = new Set(wanted.map((item) => item.props?.key).filter((key) => key !== undefined));
  const keyed = new Map();
  for (const node of [...parent.childNodes]) {
    const key = memory.get(node)?.props.key;
    if (key === undefined) continue;
    if (keys.has(key)) keyed.set(key, node);
    else node.remove();
  }
  let cursor = parent.firstChild;
  for (const item of wanted) {
    const node = reuse(item, cursor, keyed) ?? make(item, inSvg);
    if (node === cursor) cursor = cursor.nextSibling;
    else parent.insertBefore(node, cursor);
    if (item instanceof Wanted) update(node, item, inSvg);
    else if (node.nodeValue !== item) node.nodeValue = item;
  }
  while (cursor) {
    const next = cursor.nextSibling;
    cursor.remove();
    cursor = next;
  }
}

function reuse(item, cursor, keyed) {
  if (!(item instanceof Wanted)) return cursor?.nodeType === Node.TEXT_NODE ? cursor : null;
  const { key } = item.props;
  if (key !== undefined) {
    const node = keyed.get(key);
    keyed.delete(key);
    return node?.localName === item.tag ? node : null;
  }
  const known = cursor && memory.get(cursor);
  return known && known.props.key === undefined && cursor.localName === item.tag ? cursor : null;
}

function make(item, inSvg) {
  if (!(item instanceof Wanted)) return document.createTextNode(item);
  const svg = inSvg || CHILDREN_ARE_SVG.has(item.tag);
  const node = svg ? document.createElementNS(SVG, item.tag) : document.createElement(item.tag);
  memory.set(node, { props: {}, listeners: {} });
  return node;
}

function update(node, item, inSvg) {
  const known = memory.get(node);
  // The very same description as before: whoever shows much keeps it and spares the comparison.
  if (known.item === item) return;
  known.item = item;
  const before = known.props;
  known.props = item.props;
  for (const name of Object.keys(before)) if (!(name in item.props)) set(node, known, name, null);
  // The children first: a <select> can only take a value that it has an option for.
  bring(node, item.children, inSvg || CHILDREN_ARE_SVG.has(item.tag));
  for (const [name, value] of Object.entries(item.props)) {
    if (AS_PROPERTY.has(name) || before[name] !== value) set(node, known, name, value);
  }
}

function set(node, known, name, value) {
  if (name === "key") return;
  if (name.startsWith("on")) {
    listen(node, known, name.slice(2), value);
  } else if (name === "ref") {
    value?.(node);
  } else if (REFUSED.has(name) || (name === "href" && value !== null && !SAFE_HREF.test(value))) {
    throw new Error(`${name} is not set from here`);
  } else if (AS_PROPERTY.has(name)) {
    if (value !== null && value !== undefined && node[name] !== value) node[name] = value;
  } else if (value === null || value === undefined || value === false) {
    node.removeAttribute(name);
  } else {
    node.setAttribute(name, value === true ? "" : String(value));
  }
}

function listen(node, known, event, handler) {
  if (handler !== null && typeof handler !== "function") throw new Error(`on${event} takes a function`);
  if (!(event in known.listeners)) node.addEventListener(event, (happened) => known.listeners[event]?.(happened));
  known.listeners[event] = handler;
}
