/* The tools above the charts. */
const tools = field('tools');
const slid = (share) => {
  const part = share / 100;
  const longestRun = Math.max(2, ...data.steps.map((steps) => steps.length));
  // 0 is what the page was written with; then no smoothing, up to half the run
  state.window = part === 0 ? null : Math.round((longestRun / 2) ** ((part - 0.01) / 0.99));
  field('window').textContent = part === 0 ? 'as drawn'
    : state.window < 2 ? 'off' : `${fixed(2 * Math.floor(state.window / 2) + 1, 0)} steps`;
  for (const one of figures) one.drawn = one.means();
  redraw();
};
const counted = () => {
  if (field('shown')) field('shown').textContent =
    `${data.axes.runs.length - state.runs.size} of ${data.axes.runs.length} shown`;
};
const switched = (run, off) => {
  if (off === state.runs.has(run)) return;
  if (off) state.runs.add(run); else state.runs.delete(run);
  for (const button of all(document, `.tools [data-run="${run}"]`))
    button.setAttribute('aria-pressed', String(!off));
  for (const path of all(document, '#plane [data-run]'))
    if (Number(path.dataset.run) === run) path.classList.toggle('off', off);
  counted();
};
if (tools) {
  tools.hidden = false;
  tools.addEventListener('submit', (event) => event.preventDefault());
  if (field('smooth')) field('smooth').addEventListener('input', (event) => {
    slid(Number(event.target.value));
    remember();
  });
  const typed = () => {
    const [from, to] = ['from', 'to'].map((id) => field(id).value)
      .map((text) => text === '' ? null : Number(text));
    if (from !== null && to !== null && to <= from) return;
    state.from = from; state.to = to;
    redraw();
    remember();
  };
  field('from').addEventListener('change', typed);
  field('to').addEventListener('change', typed);
  field('whole').addEventListener('click', () => range(null, null));
  if (field('axis')) field('axis').addEventListener('change', (event) => onAxis(event.target.value));
  counted();
  for (const button of all(tools, '[data-run]')) {
    const run = Number(button.dataset.run);
    button.addEventListener('click', () => {
      switched(run, !state.runs.has(run));
      redraw();
      remember();
    });
    pointed(button, (on) => {
      for (const one of figures)
        pick(one.pictures, on, (part) => one.lines[Number(part.dataset.line)]?.run === run);
      pick(planes, on, (part) => Number(part.dataset.run) === run);
    });
  }
  const choose = (id, off) => field(id)?.addEventListener('click', () => {
    data.axes.runs.forEach((_, run) => switched(run, off(run)));
    redraw();
    remember();
  });
  choose('all-runs', () => false);
  choose('no-runs', () => true);
  choose('first-runs', (run) => waiting.has(run));
}
