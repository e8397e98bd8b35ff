/* The section that all charts over training show, and the axis they have. */
const redraw = () => { for (const one of figures) one.show(); };
const fields = () => {
  if (!field('from')) return;
  const text = (value) => value === null ? '' : String(Number(value.toPrecision(6)));
  field('from').value = text(state.from); field('to').value = text(state.to);
};
function range(from, to) {
  const least = state.axis === 'step' ? 1 : 1e-12;
  if (from !== null && to !== null && to - from < least) return;
  state.from = from; state.to = to;
  fields();
  redraw();
  remember();
}
/* A section of some width around a place, by key. */
function around(middle, wide, drawing) {
  const [x0, x1] = drawing.whole;
  if (wide >= x1 - x0) { range(null, null); return; }
  let from = Math.min(Math.max(middle - wide / 2, x0), x1 - wide);
  let to = from + wide;
  if (state.axis === 'step') { from = Math.round(from); to = Math.max(Math.round(to), from + 1); }
  range(from, to);
}
const listeners = [];  // of a part that draws over training by itself
/* Another axis; the section shown stays the same part of training. */
function onAxis(kind) {
  if (!data.axes.kinds.includes(kind) || kind === state.axis) return;
  const run = data.axes.phases;
  const steps = [state.from, state.to].map((at) => at === null ? null : stepAt(run, at));
  state.axis = kind;
  [state.from, state.to] = steps.map((step) => step === null ? null
    : kind === 'step' ? Math.round(step) : placeOf(run, step));
  if (!(state.from === null || state.to === null || state.to > state.from))
    state.from = state.to = null;
  if (field('axis')) field('axis').value = kind;
  if (field('unit')) field('unit').textContent =
    kind === 'step' ? 'Steps' : AXES[kind].short[0].toUpperCase() + AXES[kind].short.slice(1);
  for (const one of figures) one.place();
  for (const told of listeners) told();
  fields();
  redraw();
  remember();
}
narrow.addEventListener('change', redraw);
