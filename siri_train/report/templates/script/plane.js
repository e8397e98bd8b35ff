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
