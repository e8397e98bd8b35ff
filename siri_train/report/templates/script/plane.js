/* The plane: its own zoom, which keeps the proportions so that arrows and letters stay whole. */
const planes = all(document, '#plane svg.plot').map((svg) => {
  const drawing = picture(svg, 'percent');
  const words = new Map();
  for (const title of all(svg, '.dot > title')) {
    const spot = title.parentNode;
    words.set(spot, title.textContent);
    spot.setAttribute('aria-label', title.textContent);
    title.remove();  // else the browser's own tooltip covers ours
  }
  /* By key from point to point, in order of length. */
  const spots = [...words.keys()].map((spot) => [Number(
    /translate\(([-\d.]+)/.exec(spot.getAttribute('transform'))[1]), spot])
    .sort((a, b) => a[0] - b[0]).map(([, spot]) => spot);
  const seen = () => {
    const frame = svg.querySelector('svg.data').getBoundingClientRect();
    return spots.filter((spot) => {
      const box = spot.getBoundingClientRect();
      return box.width > 0 && box.right > frame.left && box.left < frame.right
        && box.bottom > frame.top && box.top < frame.bottom;
    });
  };
  let told = null;
  const tell = (spot) => {
    told = spot;
    tip.textContent = words.get(spot);
    const box = spot.getBoundingClientRect();
    place(box.right, box.top);
  };
  svg.setAttribute('tabindex', '0');
  svg.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const shown = seen(), way = {ArrowLeft: -1, ArrowRight: 1}[event.key], last = shown.length - 1;
    const here = shown.indexOf(told);
    if (way && shown.length)
      tell(shown[here < 0 ? (way > 0 ? 0 : last) : Math.min(Math.max(here + way, 0), last)]);
    else if (event.key === 'Home' && shown.length) tell(shown[0]);
    else if (event.key === 'End' && shown.length) tell(shown[last]);
    else if (event.key === 'Escape') { hide(); told = null; drawing.show(drawing.whole); }
    else return;
    event.preventDefault();
  });
  svg.addEventListener('blur', hide);
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
