const redraw = () => { for (const one of figures) one.show(); };
function range(from, to) {
  if (from !== null && to !== null && to - from < 1) return;
  state.from = from; state.to = to;
  if (field('from')) { field('from').value = from ?? ''; field('to').value = to ?? ''; }
  redraw();
}
