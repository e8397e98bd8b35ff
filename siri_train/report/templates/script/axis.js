/* Where a step stands on the chosen axis: report/axes.py says how far each run was before it. */
const longest = Math.max(0, ...data.axes.runs.map((run) => run.seconds?.at(-1) ?? 0));
const TIME = longest > 10800 ? ['hours', 3600] : longest > 300 ? ['minutes', 60] : ['seconds', 1];
const AXES = {
  step: {name: null, short: 'step', unit: 1},
  tokens: {name: 'response tokens sampled', short: 'tokens', unit: 1},
  seconds: {name: `${TIME[0]} of sampling and training`, short: TIME[0], unit: TIME[1]},
};
/* Index of the last value that is at most `value`, or -1. */
const atMost = (values, value) => {
  let low = -1, high = values.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (values[middle] <= value) low = middle; else high = middle - 1;
  }
  return low;
};
const between = (value, from, to) => {
  const i = Math.min(atMost(from, value), from.length - 2);
  if (i < 0) return to[0];
  const share = from[i + 1] > from[i] ? (value - from[i]) / (from[i + 1] - from[i]) : 0;
  return to[i] + Math.min(Math.max(share, 0), 1) * (to[i + 1] - to[i]);
};
/* The place of a run's step; null where the run has not recorded the axis. */
function placeOf(run, step) {
  if (state.axis === 'step') return step;
  const known = data.axes.runs[run], amounts = known && known[state.axis];
  return amounts ? between(step, known.steps, amounts) / AXES[state.axis].unit : null;
}
/* The other way: the step of a run that stands at a place. */
function stepAt(run, value) {
  if (state.axis === 'step') return value;
  const known = data.axes.runs[run], amounts = known && known[state.axis];
  return amounts ? between(value * AXES[state.axis].unit, amounts, known.steps) : null;
}
