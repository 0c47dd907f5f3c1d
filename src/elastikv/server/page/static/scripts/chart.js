// Memory over the last two minutes, on a canvas.

import { ago, bytes } from "./format.js";

const SPAN = 120; // seconds
const MARGIN = { top: 20, right: 4, bottom: 20, left: 60 };

export const KINDS = ["resize", "release", "preempt", "park", "restore", "refusal"];

export class MemoryChart {
  constructor(canvas, tip) {
    this.canvas = canvas;
    this.tip = tip;
    this.clear();
    this.toScale = false;
    this.pointer = null;
    canvas.addEventListener("pointermove", (event) => { this.pointer = event.offsetX; this.draw(); });
    canvas.addEventListener("pointerleave", () => { this.pointer = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(canvas);
    document.addEventListener("themechange", () => this.draw());
  }

  clear() {
    this.samples = [];
    this.marks = [];
    this.clock = { server: 0, local: 0 };
  }

  /** `t` of samples and marks is the server's clock in seconds. */
  add(sample, marks) {
    this.clock = { server: sample.t, local: performance.now() };
    this.samples.push(sample);
    this.marks.push(...marks);
    const oldest = sample.t - SPAN - 5;
    this.samples = this.samples.filter((kept) => kept.t > oldest);
    this.marks = this.marks.filter((kept) => kept.t > oldest);
  }

  now() {
    return this.clock.server + (performance.now() - this.clock.local) / 1000;
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !this.samples.length) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const plot = this.plot(width, height);
    this.drawGrid(context, plot);
    this.drawSeries(context, plot);
    this.drawLevels(context, plot);
    this.drawMarks(context, plot);
    this.drawPointer(context, plot);
  }

  /** Where things are: the area, its scales and its colours. */
  plot(width, height) {
    // A property of its own would be light-dark(...) still; a colour is what that comes to.
    const colour = (name) => {
      this.canvas.style.color = `var(--${name})`;
      return getComputedStyle(this.canvas).color;
    };
    const last = this.samples.at(-1);
    const highest = Math.max(...this.samples.map((sample) => sample.committed), 1);
    const top = 1.1 * (this.toScale ? Math.max(highest, last.static) : highest);
    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    const now = this.now();
    return {
      right, bottom, top, now, last, colour,
      x: (t) => right - ((now - t) / SPAN) * (right - MARGIN.left),
      y: (value) => bottom - (value / top) * (bottom - MARGIN.top),
      time: (x) => now - ((right - x) / (right - MARGIN.left)) * SPAN,
    };
  }

  drawGrid(context, { right, bottom, top, x, y, now, colour }) {
    const step = niceStep(top);
    context.font = "11px system-ui, sans-serif";
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (let value = 0; value <= top; value += step) {
      context.strokeStyle = colour("line");
      line(context, MARGIN.left, y(value), right, y(value));
      context.fillStyle = colour("soft");
      context.fillText(value ? bytes(value) : "0", MARGIN.left - 7, y(value));
    }
    context.textBaseline = "top";
    for (const seconds of [90, 60, 30, 0]) {
      context.textAlign = seconds === 0 ? "right" : "center";
      context.fillText(seconds ? `−${seconds} s` : "now", x(now - seconds), bottom + 6);
    }
  }

  drawSeries(context, plot) {
    const { bottom, right, x, y, colour } = plot;
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, 0, right - MARGIN.left, bottom);
    context.clip();
    for (const [name, fill, alpha] of [["committed", "accent", 0.24], ["used", "used", 0.8]]) {
      const points = this.samples.map((sample) => [x(sample.t), y(sample[name])]);
      points.push([right, points.at(-1)[1]]);
      context.beginPath();
      steps(context, points);
      context.lineTo(right, bottom);
      context.lineTo(points[0][0], bottom);
      context.globalAlpha = alpha;
      context.fillStyle = colour(fill);
      context.fill();
      context.globalAlpha = 1;
      context.beginPath();
      steps(context, points);
      context.strokeStyle = colour(fill);
      context.lineWidth = name === "committed" ? 2 : 1;
      context.stroke();
    }
    context.restore();
  }

  drawLevels(context, { right, top, y, last, colour }) {
    context.font = "11px system-ui, sans-serif";
    for (const [name, label, dash] of [["static", "static cache", [6, 4]], ["budget", "budget", [2, 3]]]) {
      const value = last[name];
      if (!value || value > top) continue;
      context.strokeStyle = context.fillStyle = colour(name);
      context.lineWidth = 1.5;
      context.setLineDash(dash);
      line(context, MARGIN.left, y(value), right, y(value));
      context.setLineDash([]);
      context.textAlign = "right";
      context.textBaseline = "bottom";
      context.fillText(label, right - 2, y(value) - 2);
    }
    if (last.static > top) {
      context.fillStyle = colour("static");
      context.textAlign = "right";
      context.textBaseline = "top";
      context.fillText(`↑ static cache: ${bytes(last.static)}`, right, 3);
    }
  }

  drawMarks(context, { bottom, x, colour }) {
    for (const mark of this.marks) {
      const at = x(mark.t);
      if (at < MARGIN.left) continue;
      context.strokeStyle = context.fillStyle = colour(mark.kind);
      context.globalAlpha = 0.35;
      context.lineWidth = 1;
      line(context, at, MARGIN.top + 2, at, bottom);
      context.globalAlpha = 1;
      context.fillRect(at - 3, bottom - 3, 6, 6);
    }
  }

  drawPointer(context, { right, bottom, x, time, colour }) {
    const at = this.pointer;
    this.tip.hidden = at === null || at < MARGIN.left || at > right;
    if (this.tip.hidden) return;
    const t = time(at);
    const sample = this.samples.findLast((candidate) => candidate.t <= t) ?? this.samples[0];
    context.strokeStyle = colour("soft");
    context.lineWidth = 1;
    line(context, at, MARGIN.top, at, bottom);
    const near = this.marks.filter((mark) => Math.abs(x(mark.t) - at) < 5).slice(0, 4);
    this.tip.textContent = [
      `${ago(this.now() - t)} ago`,
      `committed  ${bytes(sample.committed)}`,
      `used  ${bytes(sample.used)}`,
      ...near.map((mark) => `${mark.kind} of session ${mark.session ?? "–"}`),
    ].join("\n");
    this.tip.style.left = at > right / 2 ? "" : `${at + 12}px`;
    this.tip.style.right = at > right / 2 ? `${right - at + 16}px` : "";
  }
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

/** Memory changes at once, not gradually. */
function steps(context, points) {
  context.moveTo(...points[0]);
  for (let i = 1; i < points.length; i += 1) {
    context.lineTo(points[i][0], points[i - 1][1]);
    context.lineTo(...points[i]);
  }
}

/** Two to four lines at a power of two. */
function niceStep(top) {
  return 2 ** Math.ceil(Math.log2(top / 4));
}
