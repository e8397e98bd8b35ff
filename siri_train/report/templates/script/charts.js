/* The charts over training. */
const MOST_SAID = 14;  // lines of a tooltip
/* Makes some parts of pictures stand out while their name is pointed at or has the focus. */
const pick = (pictures, on, wanted) => {
  for (const {svg} of pictures) {
    const parts = all(svg, '[data-line], [data-run]');
    for (const part of parts) part.classList.toggle('picked', on && wanted(part));
    svg.classList.toggle('picking', on && parts.some((part) => part.matches('.picked:not(.off)')));
  }
};
const pointed = (button, told) => {
  for (const [kind, on] of [['pointerenter', true], ['focus', true], ['pointerleave', false],
    ['blur', false]]) button.addEventListener(kind, () => told(on));
};
const moved = new Map();  // places of a list of steps on an axis, by axis, run and list
const placesOf = (run, list) => {
  if (state.axis === 'step') return data.steps[list];
  const key = `${state.axis} ${run} ${list}`;
  if (!moved.has(key)) {
    const there = data.steps[list].map((step) => placeOf(run, step));
    moved.set(key, there.includes(null) ? null : there);
  }
  return moved.get(key);
};
const figures = all(document, 'figure[data-chart]').map((figure) => {
  const chart = data.charts[Number(figure.dataset.chart)];
  const lines = chart.lines.map((line) => ({...line, steps: data.steps[line.x], off: false}));
  const pictures = all(figure, 'svg.plot').map((svg) => picture(svg, chart.unit));
  const one = {figure, chart, lines, pictures};
  const runs = [...new Set(lines.map((line) => line.run))];
  const runOf = (line) => line === null || !lines[line] ? data.axes.phases : lines[line].run;
  one.hidden = (line) => line.off || state.runs.has(line.run) || line.at === null;
  one.means = () => lines.map((line) => {
    if (line.mean) return line.mean;  // of all steps, where the page has not all of them
    const window = line.window && state.window !== null ? state.window : line.window;
    return smooth(line.y, window, line.steps);
  });
  one.drawn = one.means();
  one.place = () => { for (const line of lines) line.at = placesOf(line.run, line.x); };
  one.place();
  const fit = (x0, x1, whole) => {
    let low = Infinity, high = -Infinity;
    const take = (value) => {
      if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
    };
    lines.forEach((line) => {
      if (one.hidden(line)) return;
      line.at.forEach((place, i) => { if (place >= x0 && place <= x1) take(line.y[i]); });
      for (const [step, a, b] of [...line.band, ...line.bars]) {
        const place = placeOf(line.run, step);
        if (place >= x0 && place <= x1) { take(a); take(b); }
      }
    });
    if (low > high || chart.heat || chart.lanes) return [whole[2], whole[3]];
    if (chart.floor !== null && low >= 0) low = 0;
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    const most = chart.ceiling !== null && high <= chart.ceiling ? chart.ceiling : Infinity;
    const least = whole[2] >= 0 ? 0 : -Infinity;
    return [low === 0 ? 0 : Math.max(low - pad, least), Math.min(high + pad, most)];
  };
  one.show = () => {
    const some = lines.some((line) => one.hidden(line) !== Boolean(line.waiting));
    for (const drawing of pictures) {
      if (drawing.svg.closest(narrow.matches ? '.wide' : '.narrow')) continue;  // is not seen
      if (drawing.axis !== state.axis) { drawing.move(runs, runOf); drawing.touched = true; }
      const whole = drawing.whole;
      let x0 = Math.max(state.from ?? whole[0], whole[0]);
      let x1 = Math.min(state.to ?? whole[1], whole[1]);
      if (!(x1 > x0)) { x0 = whole[0]; x1 = whole[1]; }
      const rest = !some && x0 === whole[0] && x1 === whole[1];
      drawing.show(rest ? whole : [x0, x1, ...fit(x0, x1, whole)]);
      if (drawing.touched || !rest || state.window !== null) curves(drawing, x0, x1);
    }
    all(figure, '[data-line]').forEach((part) => {
      const line = lines[Number(part.dataset.line)];
      if (part.matches('.key')) {
        part.setAttribute('aria-pressed', String(!one.hidden(line)));
        part.disabled = line.at === null;
        part.classList.toggle('off', waiting.size > 0 && state.runs.has(line.run));
      } else part.classList.toggle('off', one.hidden(line));
    });
  };
  /* The place of a curve that the picture at rest does not have. */
  const added = (drawing, name, index) => {
    const layer = all(drawing.svg, 'svg.data').at(-1);
    const group = make('g', {class: name, 'data-line': index});
    return layer.insertBefore(group, name === 'faint' ? layer.querySelector('.bars, .strong') : null);
  };
  /* Curves from the single values between two places: more than the picture at rest holds. */
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
      // one point on either side, so that the curve runs to the edge
      const a = Math.max(0, atMost(line.at, x0) - 1);
      const b = Math.min(line.at.length, atMost(line.at, x1) + 3);
      for (const i of thinned(values, a, b, 2 * drawing.width)) {
        if (values[i] === null) end();
        else corners.push(
          `${drawing.x(line.at[i]).toFixed(3)},${drawing.y(values[i]).toFixed(3)}`);
      }
      end();
    };
    lines.forEach((line, index) => {
      const find = (name) => drawing.svg.querySelector(`.${name}[data-line="${index}"]`);
      const group = (name) => find(name) ?? added(drawing, name, index);
      // dots are drawn already; a run that has not recorded this axis is not drawn
      if (line.look === 'dots' || line.look === 'rings') return;
      if (one.hidden(line)) {
        for (const name of ['faint', 'strong', 'spots']) find(name)?.replaceChildren();
        return;
      }
      const same = one.drawn[index] === line.y;
      if (same || !chart.faint) group('faint').replaceChildren();
      else write(group('faint'), 'faint', line, line.y);
      write(group('strong'), line.look, line, one.drawn[index]);
      group('spots').replaceChildren();
    });
  };
  /* Index of the value of a line that stands nearest to `want`, in view. */
  const nearest = (drawing, line, want) => {
    let best = -1;
    line.at.forEach((place, i) => {
      if (line.y[i] === null || place < drawing.view[0] || place > drawing.view[1]) return;
      if (best < 0 || Math.abs(place - want) < Math.abs(line.at[best] - want)) best = i;
    });
    return best;
  };
  /* At least the next value of any line: where points are far apart, a small move finds none. */
  const beyond = (here, way, want) => {
    let next = null;
    for (const line of lines) {
      if (one.hidden(line)) continue;
      line.at.forEach((at, i) => {
        if (line.y[i] === null || (at - here) * way <= 0) return;
        if (next === null || (at - next) * way < 0) next = at;
      });
    }
    return next === null ? here : way > 0 ? Math.max(next, want) : Math.min(next, want);
  };
  /* Index of the left end of a lane's bar that lies over `want`. */
  const covering = (line, want) => line.at === null ? -1 : line.at.findIndex((place, i) =>
    line.y[i] !== null && (line.y[i + 1] ?? null) !== null && place <= want
    && want <= line.at[i + 1]);
  /* Values of all curves at the place nearest to `want`; of lanes the bars that lie over it. */
  one.tell = (drawing, want, clientX, clientY, level) => {
    const found = lines.map((line) => one.hidden(line) ? -1
      : chart.lanes ? covering(line, want) : nearest(drawing, line, want));
    let near = chart.lanes ? Math.min(Math.max(want, drawing.view[0]), drawing.view[1]) : null;
    if (chart.lanes && state.axis === 'step') near = Math.round(near);
    if (!chart.lanes) found.forEach((i, index) => {
      const place = i < 0 ? null : lines[index].at[i];
      if (place !== null && (near === null || Math.abs(place - want) < Math.abs(near - want)))
        near = place;
    });
    if (near === null) { away(drawing); return; }
    const at = drawing.at(near);
    const guide = drawing.svg.querySelector('.guide');
    guide.setAttribute('x1', at); guide.setAttribute('x2', at); guide.classList.add('on');
    const onSteps = state.axis === 'step';
    const reach = onSteps && !lines.some((line) => line.mean) ? 0
      : (drawing.view[1] - drawing.view[0]) / 60;
    const head = document.createElement('b');
    head.textContent = onSteps ? `${chart.x} ${fixed(near, 0)}`
      : `${brief(near, near / 1000 || 1)} ${AXES[state.axis].short}`;
    tip.replaceChildren(head);
    const say = (...texts) => {
      const row = document.createElement('div');
      for (const text of texts) {
        const part = document.createElement('span');
        part.textContent = text;
        row.append(part);
      }
      tip.append(row);
    };
    /* Of many curves those nearest to the pointer. */
    const said = lines.map((_, index) => index).filter((index) => found[index] >= 0
      && (chart.lanes || Math.abs(lines[index].at[found[index]] - near) <= reach));
    const far = (index) => Math.abs(lines[index].y[found[index]] - level);
    /* Over how many seeds a mean is, where that is not all of them. */
    const over = (line, i) => {
      const {seeds, counts} = data.axes.runs[line.run] ?? {};
      const count = counts && counts[Math.max(atMost(counts.map(([step]) => step), line.steps[i]), 0)][1];
      return chart.x === 'step' && count < seeds ? ` (${count} of ${seeds} seeds)` : '';
    };
    const close = new Set(level === undefined || chart.lanes ? said.slice(0, MOST_SAID)
      : [...said].sort((a, b) => far(a) - far(b)).slice(0, MOST_SAID));
    said.filter((index) => close.has(index)).forEach((index) => {
      const line = lines[index];
      const i = found[index];
      if (chart.lanes && i >= 0) say(line.label, line.words[i]);
      if (chart.lanes) return;
      const mean = one.drawn[index] === line.y ? ''
        : ` (mean ${show(one.drawn[index][i], chart.unit)})`;
      const where = onSteps && line.steps[i] === near ? '' : `, ${chart.x} ${fixed(line.steps[i], 0)}`;
      say(line.label + where, show(line.y[i], chart.unit) + mean + over(line, i));
    });
    if (said.length > close.size) say(`${said.length - close.size} more`, 'farther from the pointer');
    if (chart.lanes && found.every((i) => i < 0)) say('no alarm');
    if (chart.heat && level !== undefined) {
      const {edges, width, shares, unit} = chart.heat;
      const step = stepAt(lines[0].run, want), row = Math.floor(level / width);
      const column = Math.min(Math.max(atMost(edges, step), 0), shares.length - 1);
      if (row >= 0 && row < shares[column].length)
        say(`${fixed(row * width, 0)} to ${fixed((row + 1) * width, 0)} ${unit}`,
          `${fixed(shares[column][row] / 10, 1)} % of responses`);
    }
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
    pointer(drawing, (px, py, event) => {
      const outside = px < drawing.left - 8 || px > drawing.left + drawing.width + 8;
      if (outside) away(drawing);
      else one.tell(drawing, drawing.value(px), event.clientX, event.clientY, drawing.level(py));
    }, () => away(drawing), (a, b) => {
      const ends = [drawing.value(a[0]), drawing.value(b[0])];
      range(...(state.axis === 'step' ? ends.map(Math.round) : ends));
    }, () => range(null, null));
    drawing.svg.setAttribute('tabindex', '0');
    drawing.svg.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const [x0, x1] = drawing.view, way = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      const middle = drawing.told ?? (x0 + x1) / 2;
      if (way) {
        const here = drawing.told ?? x0, wide = (x1 - x0) / (event.shiftKey ? 10 : 100);
        one.tell(drawing, chart.lanes
          ? here + way * Math.max(state.axis === 'step' ? 1 : 0, wide)
          : beyond(here, way, here + way * wide));
      } else if (event.key === 'Home') one.tell(drawing, x0);
      else if (event.key === 'End') one.tell(drawing, x1);
      else if (event.key === '+' || event.key === '=') around(middle, (x1 - x0) / 2, drawing);
      else if (event.key === '-') around(middle, (x1 - x0) * 2, drawing);
      else if (event.key === 'Escape') { away(drawing); range(null, null); }
      else return;
      event.preventDefault();
    });
    drawing.svg.addEventListener('blur', () => away(drawing));
  }
  for (const key of all(figure, '.key')) {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'key';
    button.dataset.line = key.dataset.line;
    const waits = state.runs.has(lines[Number(key.dataset.line)].run);
    button.setAttribute('aria-pressed', String(!waits));
    button.classList.toggle('off', waits);
    button.append(...key.childNodes);
    key.replaceWith(button);
    pointed(button, (on) => pick(pictures, on,
      (part) => part.dataset.line === button.dataset.line));
    button.addEventListener('click', () => {
      const line = lines[Number(button.dataset.line)];
      if (state.runs.has(line.run)) return;  // the whole run is off
      line.off = !line.off;
      one.show();
      remember();
    });
  }
  return one;
});
