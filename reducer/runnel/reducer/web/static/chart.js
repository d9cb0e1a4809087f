// Curves over rounds, and bars of the seconds that phases took.

import { h } from "./dom.js";
import { seconds, short } from "./format.js";

const WIDTH = 420;
const HEIGHT = 190;
const LEFT = 52;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 24;

/** Round steps between two values, at most `count` + 1 of them. */
export function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= raw * (1 - 1e-9));
  const found = [];
  // Multiplied, not added up: 0.1 + 0.2 is no label.
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

/**
 * One metric over the rounds, with the values under the pointer or the arrow keys.
 *
 * @param {object} options
 * @param {string} options.name
 * @param {{name: string, points: [number, number][]}[]} options.series points are [round, value], all finite.
 * @param {number | null} options.at the round that is pointed at
 * @param {(round: number | null) => void} options.point is called when another one is
 */
export function curve({ name, series, at, point }) {
  const points = series.flatMap((each) => each.points);
  const rounds = [...new Set(points.map(([round]) => round))].sort((a, b) => a - b);
  const scale = scales(points);
  const shown = at !== null && rounds.includes(at) ? at : rounds.at(-1);
  const values = series
    .map((each) => [each.name, each.points.find(([round]) => round === shown)?.[1]])
    .filter(([, value]) => value !== undefined);
  const move = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    point(nearest(rounds, scale, x));
  };
  const key = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    point(rounds[Math.min(Math.max(rounds.indexOf(shown) + step, 0), rounds.length - 1)]);
  };
  const said = values.map(([which, value]) => `${which} ${short(value)}`).join(", ");
  return h(
    "figure",
    { key: name, class: "curve" },
    h(
      "figcaption",
      null,
      h("strong", { title: name }, name),
      h("span", { class: "values" }, values.map(([which, value], index) => [
        index ? " " : "",
        h("data", { value: String(value), title: `${which}: ${value}`, class: which === "train" ? "train" : null }, short(value)),
      ]), h("span", { class: "mute" }, ` round ${shown}`)),
    ),
    h(
      "svg",
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "slider", tabindex: "0", "aria-label": `${name} over the rounds`,
        "aria-valuemin": rounds[0], "aria-valuemax": rounds.at(-1), "aria-valuenow": shown,
        "aria-valuetext": `round ${shown}: ${said}`,
        onpointermove: move, onpointerleave: () => point(null), onkeydown: key,
      },
      axes(scale),
      series.map((each) => line(each, scale)),
      h("line", { class: "pointed", x1: scale.x(shown), x2: scale.x(shown), y1: TOP, y2: HEIGHT - BOTTOM }),
      values.map(([which, value]) =>
        h("circle", { class: `point ${which}`, cx: scale.x(shown), cy: scale.y(value), r: 3.5 }),
      ),
    ),
  );
}

function scales(points) {
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  // Spread arguments would overflow the stack with a hundred thousand rounds.
  const least = (list) => list.reduce((a, b) => Math.min(a, b), Infinity);
  const most = (list) => list.reduce((a, b) => Math.max(a, b), -Infinity);
  const [left, right] = [least(xs), Math.max(most(xs), least(xs) + 1)];
  let [low, high] = [least(ys), most(ys)];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  [low, high] = [low - room, high + room];
  return {
    left, right, low, high,
    x: (round) => LEFT + ((round - left) / (right - left)) * (WIDTH - LEFT - RIGHT),
    y: (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM),
  };
}

function axes(scale) {
  const whole = ticks(scale.left, scale.right, 6).filter(Number.isInteger);
  return h(
    "g",
    { class: "axes", "aria-hidden": "true" },
    ticks(scale.low, scale.high, 4).map((value) => [
      h("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: scale.y(value), y2: scale.y(value) }),
      h("text", { x: LEFT - 6, y: scale.y(value) + 3.5, "text-anchor": "end" }, short(value)),
    ]),
    whole.map((round) => h("text", { x: scale.x(round), y: HEIGHT - 6, "text-anchor": "middle" }, round)),
  );
}

function line({ name, points }, scale) {
  const path = points.map(([x, y]) => `${scale.x(x).toFixed(1)},${scale.y(y).toFixed(1)}`).join(" ");
  return h("polyline", { class: `trace ${name}`, points: path });
}

function nearest(rounds, scale, x) {
  return rounds.reduce((best, round) => (Math.abs(scale.x(round) - x) < Math.abs(scale.x(best) - x) ? round : best));
}

/**
 * Seconds by part as one bar; `longest` is the total that fills it. The order of `names` gives the colours.
 *
 * @param {Record<string, number>} parts
 */
export function bar(parts, names, longest) {
  const there = Object.entries(parts).filter(([, value]) => Number.isFinite(value) && value > 0);
  there.sort(([a], [b]) => place(names, a) - place(names, b));
  const said = there.map(([name, value]) => `${name} ${seconds(value)}`).join(", ");
  let x = 0;
  return h(
    "svg",
    { class: "bar", role: "img", "aria-label": said || "nothing measured", viewBox: "0 0 100 10", preserveAspectRatio: "none" },
    h("title", null, said),
    there.map(([name, value]) => {
      const width = (value / (longest || 1)) * 100;
      const from = x;
      x += width;
      return h("rect", { class: `part-${place(names, name)}`, x: from, y: 0, width, height: 10 });
    }),
  );
}

function place(names, name) {
  const found = names.indexOf(name);
  return found < 0 ? names.length : found;
}

/** What the colours of bars mean. */
export function legend(names) {
  return h(
    "ul",
    { class: "legend", "aria-hidden": "true" },
    names.map((name, index) => h("li", { key: name }, h("span", { class: `swatch part-${index}` }), name)),
  );
}

export function total(parts) {
  return Object.values(parts).reduce((sum, value) => sum + (Number.isFinite(value) ? value : 0), 0);
}
