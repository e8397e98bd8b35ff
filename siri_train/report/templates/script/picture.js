/* A picture whose inner part can show a section: grid and axis texts are written anew for it. */
const picture = (svg, unit) => {
  const layers = all(svg, 'svg.data');
  const box = ['x', 'y', 'width', 'height'].map((key) => Number(layers[0].getAttribute(key)));
  const [left, top, width, height] = box;
  const steps = svg.dataset.limits.split(' ').map(Number);  // as it was drawn
  const rest = all(svg, '.x-axis, .y-axis').map((axis) => [axis, [...axis.childNodes]]);
  const pins = layers.flatMap((layer) => all(layer, '[transform]'))
    .map((pin) => [pin, pin.getAttribute('transform')]);
  const notes = all(svg, '.notes text').map((note) => [note, Number(note.getAttribute('x'))]);
  const label = svg.querySelector('text.name'), said = label && label.textContent;
  const self = {svg, left, top, width, height, steps, whole: steps, view: steps, axis: 'step',
    tall: !svg.closest('[data-chart]')};
  self.x = (value) => left + (value - self.whole[0]) / (self.whole[1] - self.whole[0]) * width;
  self.y = (value) =>
    top + height - (value - self.whole[2]) / (self.whole[3] - self.whole[2]) * height;
  self.at = (value) => left + (value - self.view[0]) / (self.view[1] - self.view[0]) * width;
  self.value = (px) => self.view[0] + (px - left) / width * (self.view[1] - self.view[0]);
  self.level = (py) => self.view[3] - (py - top) / height * (self.view[3] - self.view[2]);
  const axes = ([x0, x1, y0, y1]) => {
    const right = left + width, bottom = top + height;
    const [across, up] = ['.x-axis', '.y-axis'].map((name) => svg.querySelector(name));
    across.replaceChildren(); up.replaceChildren();
    const marks = ticks(x0, x1, width > 300 ? 7 : 5);
    const write = self.axis === 'step' ? (mark, step) => show(mark, 'number', step) : brief;
    for (const mark of marks) {
      const at = self.at(mark);
      across.append(make('line', {class: self.tall ? 'grid' : 'axis', x1: at, x2: at,
        y1: bottom, y2: self.tall ? top : bottom + 4}));
      across.append(make('text', {x: at, y: bottom + 17, 'text-anchor': 'middle'},
        write(mark, marks[1] - marks[0])));
    }
    if ('lanes' in svg.dataset) {  // names stay where they are
      up.replaceChildren(...rest.find(([axis]) => axis === up)[1]);
      return;
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
    const zoomed = view.some((value, i) => value !== self.whole[i]);
    self.view = view;
    const [x0, x1, y0, y1] = view;
    const sides = [self.x(x0), self.y(y1), self.x(x1) - self.x(x0), self.y(y0) - self.y(y1)];
    for (const layer of layers) layer.setAttribute('viewBox', sides.join(' '));
    svg.classList.toggle('zoomed', zoomed || self.axis !== 'step');
    const shrink = `scale(${sides[2] / width} ${sides[3] / height})`;
    for (const [pin, at] of pins) pin.setAttribute('transform', zoomed ? `${at} ${shrink}` : at);
    for (const [note, at] of notes) {
      const moved = left + (at - sides[0]) / sides[2] * width;
      note.setAttribute('x', moved);
      note.classList.toggle('off',
        !(moved >= left - 1 && moved <= left + width + 1) || self.axis !== 'step' && crowded(note));
    }
    apart();
    if (zoomed || self.axis !== 'step') axes(view);
    else for (const [axis, nodes] of rest) axis.replaceChildren(...nodes);
  };
  /* Names of marks side by side where they would lie on one another. */
  const apart = () => {
    const named = notes.map(([note]) => note)
      .filter((note) => note.classList.length > 1 && !note.classList.contains('off'))
      .map((note) => [Number(note.getAttribute('x')), note]).sort((a, b) => a[0] - b[0]);
    named.forEach(([x, note], i) => {
      const crowd = (other) => other && Math.abs(other[0] - x) < 34;
      const edge = x > left + width - 14;
      note.setAttribute('text-anchor', crowd(named[i + 1]) || edge && !crowd(named[i - 1]) ? 'end'
        : crowd(named[i - 1]) ? 'start' : 'middle');
    });
  };
  /* On another axis the phases may be too narrow for their names; marks keep theirs. */
  const crowded = (note) => note.classList.length === 1;
  self.addPin = (pin) => pins.push([pin, pin.getAttribute('transform')]);

  /* What stands at a step, as it was drawn: each takes a function from old to new places. */
  const moving = [];
  const whose = new Map();
  const collect = (runOf) => {
    const number = (node, key) => Number(node.getAttribute(key));
    const take = (what, read) => {
      for (const node of layers.flatMap((layer) => all(layer, what))) {
        const part = node.closest('[data-line]');
        whose.set(node, runOf(part ? Number(part.dataset.line) : null));
        moving.push([node, read(node)]);
      }
    };
    take('rect.span', (node) => {
      const x = number(node, 'x'), end = x + number(node, 'width');
      return (to) => {
        node.setAttribute('x', to(x)); node.setAttribute('width', Math.max(0, to(end) - to(x)));
      };
    });
    take('line.mark', (node) => {
      const x = number(node, 'x1');
      return (to) => { node.setAttribute('x1', to(x)); node.setAttribute('x2', to(x)); };
    });
    take('polygon.band, polyline.thread', (node) => {
      const points = node.getAttribute('points').split(' ').map((one) => one.split(','));
      return (to) => node.setAttribute('points',
        points.map(([x, y]) => `${to(Number(x)).toFixed(2)},${y}`).join(' '));
    });
    take('path.bar, path.cell', (node) => {
      const d = node.getAttribute('d');
      return (to) => node.setAttribute('d',
        d.replace(/([MH])([-\d.]+)/g, (_, kind, x) => kind + to(Number(x)).toFixed(2)));
    });
    for (const pin of pins) {
      const found = /^translate\(([-\d.]+) ([-\d.]+)\)$/.exec(pin[1]);
      if (!found) continue;
      const part = pin[0].closest('[data-line]');
      whose.set(pin[0], runOf(part ? Number(part.dataset.line) : null));
      moving.push([pin[0], (to) => {
        pin[1] = `translate(${to(Number(found[1])).toFixed(2)} ${found[2]})`;
      }]);
    }
    for (const note of notes) {
      const x = note[1];
      whose.set(note[0], runOf(null));
      moving.push([note[0], (to) => { note[1] = to(x); }]);
    }
  };
  /* Move everything to the chosen axis. `runOf` gives the run of a line, of null that of phases. */
  self.move = (runs, runOf) => {
    if (!moving.length) collect(runOf);
    self.axis = state.axis;
    if (label) label.textContent = AXES[self.axis].name ?? said;
    const ends = runs.flatMap((run) => steps.slice(0, 2).map((step) => placeOf(run, step)))
      .filter((place) => place !== null);
    const low = Math.min(...ends), high = Math.max(...ends);
    self.whole = ends.length ? [low, high > low ? high : low + 1, steps[2], steps[3]] : steps;
    for (const [node, move] of moving) {
      const run = whose.get(node);
      const lost = placeOf(run, steps[0]) === null;
      node.classList.toggle('lost', lost);
      if (!lost) move(self.axis === 'step' ? (px) => px : (px) => self.x(
        placeOf(run, steps[0] + (px - left) / width * (steps[1] - steps[0]))));
    }
  };
  return self;
};
