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
