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
    if (event.pointerType === 'touch') moved(...at(event), event);  // a finger does not hover
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
  svg.addEventListener('pointerleave', (event) => {
    if (band) return;
    stop();
    if (event.pointerType !== 'touch') left();  // else until a finger comes down elsewhere
  });
  svg.addEventListener('dblclick', twice);
}
document.addEventListener('pointerdown', (event) => {
  if (event.pointerType === 'touch' && !event.target.closest('svg.plot')) hide();
});
