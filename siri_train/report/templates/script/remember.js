/* What the reader has chosen stands in the address behind #, so that it outlives a new page. */
let restoring = true;
function remember() {
  if (restoring) return;
  const said = new URLSearchParams();
  if (state.axis !== 'step') said.set('axis', state.axis);
  for (const end of ['from', 'to'])
    if (state[end] !== null) said.set(end, String(Number(state[end].toPrecision(9))));
  if (field('smooth') && Number(field('smooth').value)) said.set('smooth', field('smooth').value);
  data.axes.runs.forEach(({label}, run) => {
    if (state.runs.has(run) !== waiting.has(run)) said.append(waiting.has(run) ? 'on' : 'off', label);
  });
  for (const {chart, lines} of figures)
    for (const line of lines) if (line.off) said.append('hide', `${chart.title}|${line.label}`);
  for (const [key, value] of chosenResponses()) said.set(`r-${key}`, value);
  const text = said.toString();
  try { history.replaceState(null, '', text ? `#${text}` : location.pathname + location.search); }
  catch { /* some viewers forbid it: then nothing is remembered */ }
}
const recall = () => {
  const said = new URLSearchParams(location.hash.slice(1));
  const amount = (key) => {
    const value = Number(said.get(key));
    return said.has(key) && said.get(key) !== '' && Number.isFinite(value) ? value : null;
  };
  if (said.get('axis')) onAxis(said.get('axis'));
  const hidden = new Set(said.getAll('hide'));
  const [off, on] = ['off', 'on'].map((key) => new Set(said.getAll(key)));
  data.axes.runs.forEach(({label}, run) =>
    switched(run, waiting.has(run) ? !on.has(label) : off.has(label)));
  for (const {chart, lines} of figures)
    for (const line of lines) line.off = hidden.has(`${chart.title}|${line.label}`);
  const share = amount('smooth');
  if (field('smooth')) {
    field('smooth').value = Math.min(Math.max(share ?? 0, 0), 100);
    if (share !== null) slid(Number(field('smooth').value));
  }
  const [from, to] = [amount('from'), amount('to')];
  if (from === null || to === null || to > from) { state.from = from; state.to = to; }
  fields();
  if (location.hash.length > 1) redraw();
  chooseResponses([...said].filter(([key]) => key.startsWith('r-'))
    .map(([key, value]) => [key.slice(2), value]));
};
recall();
restoring = false;
