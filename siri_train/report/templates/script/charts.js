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
    if (low > high || chart.lanes) return [whole[2], whole[3]];
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
      const value = line.words?.[i] || show(line.y[i], chart.unit) + mean;
      for (const text of [line.label, value]) {
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
