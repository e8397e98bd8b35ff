'use strict';
/* Adds to the pictures of the page: values under the pointer, zoom, curves switched on and off,
   smoothing. Without this script the page shows the same charts, at rest. */
(() => {
const NS = 'http://www.w3.org/2000/svg';
const data = JSON.parse(document.getElementById('data').textContent);
const all = (root, what) => [...root.querySelectorAll(what)];
const field = (id) => document.getElementById(id);
const state = {from: null, to: null, window: null, runs: new Set()};  // runs: those switched off

const make = (name, attributes, text) => {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};

/* Numbers, as report/scale.py writes them. */
const ticks = (low, high, most) => {
  const span = high - low;
  if (!(span > 0 && Number.isFinite(span))) return [low];
  let step = 10 ** Math.floor(Math.log10(span / most));
  for (let turn = 0; span / step > most - 1; turn++) step *= turn % 3 === 1 ? 2.5 : 2;
  const marks = [];
  const last = Math.floor(high / step + 1e-9);
  // + 0: a minus zero would be written as one
  for (let k = Math.ceil(low / step - 1e-9); k <= last; k++) marks.push(k * step + 0);
  return marks;
};
const fixed = (value, digits) => value.toLocaleString('en',
  {minimumFractionDigits: digits, maximumFractionDigits: digits});
const places = (step) => Math.min(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), 12);
const show = (value, unit, step) => {
  if (unit === 'percent') return fixed(100 * value, step ? places(100 * step) : 1) + ' %';
  if (step >= 1e-6 && step < 1e6) return fixed(value, places(step));
  if (Math.abs(value) >= 1000) return fixed(value, 0);
  return String(Number(value.toPrecision(4)));
};

/* The mean over `window` points around each, by running sums; a gap stays a gap. */
const smooth = (values, window) => {
  if (window < 2) return values;
  const sums = [0], counts = [0];
  values.forEach((value, i) => {
    sums.push(sums[i] + (value ?? 0));
    counts.push(counts[i] + (value === null ? 0 : 1));
  });
  const half = Math.floor(window / 2);
  return values.map((value, i) => {
    const a = Math.max(0, i - half), b = Math.min(values.length, i + half + 1);
    return value === null ? null : (sums[b] - sums[a]) / (counts[b] - counts[a]);
  });
};

/* A picture whose inner part can show a section: grid and axis texts are written anew for it. */
const picture = (svg, unit) => {
  const layers = all(svg, 'svg.data');
  const box = ['x', 'y', 'width', 'height'].map((key) => Number(layers[0].getAttribute(key)));
  const [left, top, width, height] = box;
  const whole = svg.dataset.limits.split(' ').map(Number);
  const rest = all(svg, '.x-axis, .y-axis').map((axis) => [axis, [...axis.childNodes]]);
  const pins = layers.flatMap((layer) => all(layer, '[transform]'))
    .map((pin) => [pin, pin.getAttribute('transform')]);
  const notes = all(svg, '.notes text').map((note) => [note, Number(note.getAttribute('x'))]);
  const x = (value) => left + (value - whole[0]) / (whole[1] - whole[0]) * width;
  const y = (value) => top + height - (value - whole[2]) / (whole[3] - whole[2]) * height;
  const self = {svg, left, top, width, height, whole, x, y, view: whole,
    tall: !svg.closest('[data-chart]')};
  self.at = (value) => left + (value - self.view[0]) / (self.view[1] - self.view[0]) * width;
  self.value = (px) => self.view[0] + (px - left) / width * (self.view[1] - self.view[0]);
  self.level = (py) => self.view[3] - (py - top) / height * (self.view[3] - self.view[2]);
  const axes = ([x0, x1, y0, y1]) => {
    const right = left + width, bottom = top + height;
    const [across, up] = ['.x-axis', '.y-axis'].map((name) => svg.querySelector(name));
    across.replaceChildren(); up.replaceChildren();
    const marks = ticks(x0, x1, width > 300 ? 7 : 5);
    for (const mark of marks) {
      const at = self.at(mark);
      across.append(make('line', {class: self.tall ? 'grid' : 'axis', x1: at, x2: at,
        y1: bottom, y2: self.tall ? top : bottom + 4}));
      across.append(make('text', {x: at, y: bottom + 17, 'text-anchor': 'middle'},
        show(mark, 'number', marks[1] - marks[0])));
    }
    const levels = ticks(y0, y1, 6);
    for (const mark of levels) {
      const at = top + (y1 - mark) / (y1 - y0) * height;
      up.append(make('line', {class: 'grid', x1: left, x2: right, y1: at, y2: at}));
      up.append(make('text', {x: left - 8, y: at + 4, 'text-anchor': 'end'},
        show(mark, unit, levels[1] - levels[0])));
    }
  };
  self.show = (view) => {
    const zoomed = view.some((value, i) => value !== whole[i]);
    self.view = view;
    const [x0, x1, y0, y1] = view;
    const sides = [x(x0), y(y1), x(x1) - x(x0), y(y0) - y(y1)];
    for (const layer of layers) layer.setAttribute('viewBox', sides.join(' '));
    svg.classList.toggle('zoomed', zoomed);
    const shrink = `scale(${sides[2] / width} ${sides[3] / height})`;
    for (const [pin, at] of pins) pin.setAttribute('transform', zoomed ? `${at} ${shrink}` : at);
    for (const [note, at] of notes) {
      const moved = left + (at - sides[0]) / sides[2] * width;
      note.setAttribute('x', moved);
      note.classList.toggle('off', moved < left - 1 || moved > left + width + 1);
    }
    if (zoomed) axes(view);
    else for (const [axis, nodes] of rest) axis.replaceChildren(...nodes);
  };
  self.addPin = (pin) => pins.push([pin, pin.getAttribute('transform')]);
  return self;
};

const tip = document.createElement('div');
tip.id = 'tip';
tip.setAttribute('role', 'status');
document.body.append(tip);
const place = (clientX, clientY) => {
  const size = tip.getBoundingClientRect();
  const right = clientX + 16 + size.width > innerWidth;
  tip.style.left = Math.max(4, right ? clientX - size.width - 16 : clientX + 16) + 'px';
  tip.style.top = Math.max(4, clientY - size.height - 12) + 'px';
  tip.style.visibility = 'visible';
};
const hide = () => { tip.style.visibility = 'hidden'; };

/* The charts over the steps. */
const figures = all(document, 'figure[data-chart]').map((figure) => {
  const chart = data.charts[Number(figure.dataset.chart)];
  const lines = chart.lines.map((line) => ({...line, steps: data.steps[line.x], off: false}));
  const pictures = all(figure, 'svg.plot').map((svg) => picture(svg, chart.unit));
  const one = {figure, chart, lines, pictures};
  one.hidden = (line) => line.off || state.runs.has(line.run);
  one.means = () => lines.map((line) => {
    const window = line.window && state.window !== null ? state.window : line.window;
    return smooth(line.y, window);
  });
  one.drawn = one.means();
  const fit = (x0, x1, whole) => {
    let low = Infinity, high = -Infinity;
    const take = (value) => {
      if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
    };
    lines.forEach((line) => {
      if (one.hidden(line)) return;
      line.steps.forEach((step, i) => { if (step >= x0 && step <= x1) take(line.y[i]); });
      for (const [step, a, b] of [...line.band, ...line.bars])
        if (step >= x0 && step <= x1) { take(a); take(b); }
    });
    if (low > high) return [whole[2], whole[3]];
    if (chart.floor !== null && low >= 0) low = 0;
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    const most = chart.ceiling !== null && high <= chart.ceiling ? chart.ceiling : Infinity;
    const least = whole[2] >= 0 ? 0 : -Infinity;
    return [low === 0 ? 0 : Math.max(low - pad, least), Math.min(high + pad, most)];
  };
  one.show = () => {
    const some = lines.some((line) => one.hidden(line));
    for (const drawing of pictures) {
      const whole = drawing.whole;
      let x0 = Math.max(state.from ?? whole[0], whole[0]);
      let x1 = Math.min(state.to ?? whole[1], whole[1]);
      if (!(x1 > x0)) { x0 = whole[0]; x1 = whole[1]; }
      const rest = !some && x0 === whole[0] && x1 === whole[1];
      drawing.show(rest ? whole : [x0, x1, ...fit(x0, x1, whole)]);
      if (drawing.touched || !rest || state.window !== null) curves(drawing, x0, x1);
    }
    all(figure, '[data-line]').forEach((part) => {
      const off = one.hidden(lines[Number(part.dataset.line)]);
      if (part.matches('.key')) part.setAttribute('aria-pressed', String(!off));
      else part.classList.toggle('off', off);
    });
  };
  /* Curves from every single value between the two steps: more than the picture at rest holds. */
  const curves = (drawing, x0, x1) => {
    drawing.touched = true;
    const write = (group, look, line, values) => {
      group.replaceChildren();
      let corners = [];
      const end = () => {
        if (corners.length) {
          if (corners.length === 1) corners.push(corners[0]);  // a lone point is a round spot
          group.append(make('polyline',
            {class: `curve ${look} ${line.css}`, points: corners.join(' ')}));
        }
        corners = [];
      };
      const margin = (x1 - x0) / 50 + 1;
      line.steps.forEach((step, i) => {
        if (step < x0 - margin || step > x1 + margin || values[i] === null) { end(); return; }
        corners.push(`${drawing.x(step).toFixed(3)},${drawing.y(values[i]).toFixed(3)}`);
      });
      end();
    };
    lines.forEach((line, index) => {
      const group = (name) => drawing.svg.querySelector(`.${name}[data-line="${index}"]`);
      if (line.look === 'dots' || line.look === 'rings') return;  // all of it is drawn already
      const same = one.drawn[index] === line.y;
      if (same) group('faint').replaceChildren();
      else write(group('faint'), 'faint', line, line.y);
      write(group('strong'), line.look, line, one.drawn[index]);
      if (group('spots')) group('spots').replaceChildren();
    });
  };
  /* Values of all curves at the step nearest to `want`. */
  const tell = (drawing, want, clientX, clientY) => {
    let near = null;
    for (const line of lines) {
      if (one.hidden(line)) continue;
      line.steps.forEach((step, i) => {
        if (line.y[i] === null || step < drawing.view[0] || step > drawing.view[1]) return;
        if (near === null || Math.abs(step - want) < Math.abs(near - want)) near = step;
      });
    }
    if (near === null) { away(drawing); return; }
    const at = drawing.at(near);
    const guide = drawing.svg.querySelector('.guide');
    guide.setAttribute('x1', at); guide.setAttribute('x2', at); guide.classList.add('on');
    const head = document.createElement('b');
    head.textContent = `${chart.x} ${fixed(near, 0)}`;
    tip.replaceChildren(head);
    lines.forEach((line, index) => {
      const i = line.steps.indexOf(near);
      if (one.hidden(line) || i < 0 || line.y[i] === null) return;
      const mean = one.drawn[index] === line.y ? ''
        : ` (mean ${show(one.drawn[index][i], chart.unit)})`;
      const row = document.createElement('div');
      for (const text of [line.label, show(line.y[i], chart.unit) + mean]) {
        const part = document.createElement('span');
        part.textContent = text;
        row.append(part);
      }
      tip.append(row);
    });
    drawing.told = near;
    const frame = drawing.svg.getBoundingClientRect();
    place(clientX ?? frame.left + at / drawing.svg.viewBox.baseVal.width * frame.width,
      clientY ?? frame.top + frame.height / 3);
  };
  const away = (drawing) => {
    hide();
    drawing.svg.querySelector('.guide').classList.remove('on');
  };
  for (const drawing of pictures) {
    pointer(drawing, (px, _, event) => {
      const outside = px < drawing.left - 8 || px > drawing.left + drawing.width + 8;
      if (outside) away(drawing);
      else tell(drawing, drawing.value(px), event.clientX, event.clientY);
    }, () => away(drawing), (a, b) => {
      range(Math.round(drawing.value(a[0])), Math.round(drawing.value(b[0])));
    }, () => range(null, null));
    drawing.svg.setAttribute('tabindex', '0');
    drawing.svg.addEventListener('keydown', (event) => {
      const way = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (way) {
        const wide = (drawing.view[1] - drawing.view[0]) / (event.shiftKey ? 10 : 100);
        tell(drawing, (drawing.told ?? drawing.view[0]) + way * Math.max(1, wide));
        event.preventDefault();
      } else if (event.key === 'Escape') { away(drawing); range(null, null); }
    });
    drawing.svg.addEventListener('blur', () => away(drawing));
  }
  for (const key of all(figure, '.key')) {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'key';
    button.dataset.line = key.dataset.line;
    button.append(...key.childNodes);
    key.replaceWith(button);
    button.addEventListener('click', () => {
      const line = lines[Number(button.dataset.line)];
      if (state.runs.has(line.run)) return;  // the whole run is off
      line.off = !line.off;
      one.show();
    });
  }
  return one;
});

/* Moves, drags and double clicks on a picture, in the picture's own coordinates. */
function pointer(drawing, moved, left, dragged, twice) {
  const {svg} = drawing;
  let start = null, band = null;
  const at = (event) => {
    const frame = svg.getBoundingClientRect(), size = svg.viewBox.baseVal;
    return [(event.clientX - frame.left) / frame.width * size.width,
      (event.clientY - frame.top) / frame.height * size.height];
  };
  const inside = ([px, py]) => [
    Math.min(Math.max(px, drawing.left), drawing.left + drawing.width),
    Math.min(Math.max(py, drawing.top), drawing.top + drawing.height)];
  const stop = () => { start = null; if (band) band.remove(); band = null; };
  svg.addEventListener('pointerdown', (event) => {
    if (event.button === 0 && event.isPrimary) start = inside(at(event));
  });
  svg.addEventListener('pointermove', (event) => {
    const here = at(event);
    if (start && Math.abs(here[0] - start[0]) > 6) {
      if (!band) {
        band = svg.appendChild(make('rect', {class: 'selected'}));
        svg.setPointerCapture(event.pointerId);
      }
      const end = inside(here), low = drawing.top, high = drawing.top + drawing.height;
      const [a, b] = drawing.tall ? [start[1], end[1]] : [low, high];
      const sides = {x: Math.min(start[0], end[0]), y: Math.min(a, b),
        width: Math.abs(end[0] - start[0]), height: Math.abs(b - a)};
      for (const [key, value] of Object.entries(sides)) band.setAttribute(key, value);
    }
    moved(...here, event);
  });
  svg.addEventListener('pointerup', (event) => {
    if (band) {
      const ends = [start, inside(at(event))].sort((a, b) => a[0] - b[0]);
      stop();
      dragged(...ends);
    }
    stop();
  });
  svg.addEventListener('pointercancel', () => { stop(); left(); });
  svg.addEventListener('pointerleave', () => { if (!band) { stop(); left(); } });
  svg.addEventListener('dblclick', twice);
}

const redraw = () => { for (const one of figures) one.show(); };
function range(from, to) {
  if (from !== null && to !== null && to - from < 1) return;
  state.from = from; state.to = to;
  if (field('from')) { field('from').value = from ?? ''; field('to').value = to ?? ''; }
  redraw();
}

/* The plane: its own zoom, which keeps the proportions so that arrows and letters stay whole. */
const planes = all(document, '#plane svg.plot').map((svg) => {
  const drawing = picture(svg, 'percent');
  const words = new Map();
  for (const title of all(svg, 'circle > title')) {
    const spot = title.parentNode;
    words.set(spot, title.textContent);
    spot.setAttribute('aria-label', title.textContent);
    title.remove();  // else the browser's own tooltip covers ours
  }
  pointer(drawing, (px, py, event) => {
    const text = words.get(event.target);
    if (text === undefined) { hide(); return; }
    tip.textContent = text;
    place(event.clientX, event.clientY);
  }, hide, (a, b) => {
    const part = Math.max(Math.abs(b[0] - a[0]) / drawing.width,
      Math.abs(b[1] - a[1]) / drawing.height);
    const middle = [(drawing.value(a[0]) + drawing.value(b[0])) / 2,
      (drawing.level(a[1]) + drawing.level(b[1])) / 2];
    const [x0, x1, y0, y1] = drawing.view;
    const half = [(x1 - x0) * part / 2, (y1 - y0) * part / 2];
    drawing.show([0, 1].flatMap((k) => [middle[k] - half[k], middle[k] + half[k]]));
  }, () => drawing.show(drawing.whole));
  return drawing;
});

/* The tools above the charts. */
const tools = document.querySelector('form.tools');
if (tools) {
  tools.hidden = false;
  tools.addEventListener('submit', (event) => event.preventDefault());
  const longest = Math.max(2, ...data.steps.map((steps) => steps.length));
  if (field('smooth')) field('smooth').addEventListener('input', (event) => {
    const part = Number(event.target.value) / 100;
    // 0 is what the page was written with; then no smoothing, up to half the run
    state.window = part === 0 ? null : Math.round((longest / 2) ** ((part - 0.01) / 0.99));
    field('window').textContent = part === 0 ? 'as drawn'
      : state.window < 2 ? 'off' : `${fixed(2 * Math.floor(state.window / 2) + 1, 0)} steps`;
    for (const one of figures) one.drawn = one.means();
    redraw();
  });
  const typed = () => {
    const [from, to] = ['from', 'to'].map((id) => field(id).value)
      .map((text) => text === '' ? null : Number(text));
    if (from !== null && to !== null && to <= from) return;
    state.from = from; state.to = to;
    redraw();
  };
  field('from').addEventListener('change', typed);
  field('to').addEventListener('change', typed);
  field('whole').addEventListener('click', () => range(null, null));
  for (const button of all(tools, '[data-run]')) button.addEventListener('click', () => {
    const run = Number(button.dataset.run);
    if (!state.runs.delete(run)) state.runs.add(run);
    const off = state.runs.has(run);
    button.setAttribute('aria-pressed', String(!off));
    for (const path of all(document, '#plane [data-run]'))
      if (Number(path.dataset.run) === run) path.classList.toggle('off', off);
    redraw();
  });
}
document.documentElement.classList.add('live');
})();
