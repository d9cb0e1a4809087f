// How values read to people.

import { h } from "./dom.js";

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DATE = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit",
});
const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];

/** A number in few characters: 0.9712, 12 345, 1.2e-7. */
export function short(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return value === null || value === undefined ? "" : String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en").replaceAll(",", "\u202f");
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(size < 1 ? 4 : 5))) : value.toExponential(2);
}

/** A number as an element that also carries its full value. */
export function number(value) {
  return typeof value === "number" ? h("data", { value: String(value), title: String(value) }, short(value)) : short(value);
}

export function seconds(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "";
  if (value < 0.1) return `${Math.round(value * 1000)} ms`;
  if (value < 100) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(value / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(value % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function bytes(value) {
  let step = 0;
  while (value >= 1024 && step < BYTES.length - 1) {
    value /= 1024;
    step += 1;
  }
  return `${step ? value.toFixed(1) : value} ${BYTES[step]}`;
}

/** A point in time; today's without the date. */
export function time(iso) {
  if (!iso) return "";
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return String(iso);
  const today = at.toDateString() === new Date().toDateString();
  return h("time", { datetime: at.toISOString(), title: at.toISOString() }, (today ? TIME : DATE).format(at));
}

export function plural(count, one, many = `${one}s`) {
  return `${short(count)} ${count === 1 ? one : many}`;
}

/** An id in few characters, with the whole of it in its title. */
export function id(text, length = 12) {
  return text ? h("code", { title: text }, text.length > length + 1 ? `${text.slice(0, length)}…` : text) : "";
}
