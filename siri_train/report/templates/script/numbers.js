/* Numbers, as report/scale.py writes them. */
const ticks = (low, high, most) => {
  const span = high - low;
  if (!(span > 0 && Number.isFinite(span))) return [low];
  let step = 10 ** Math.floor(Math.log10(span / most));
  for (let turn = 0; span / step > most - 1; turn++) step *= turn % 3 === 1 ? 2.5 : 2;
  const marks = [];
  const last = Math.floor(high / step + 1e-9);
  // + 0: a minus zero would be written as one
  for (let k = Math.ceil(low / step - 1e-9); k <= last; k++) marks.push(k * step + 0);
  return marks;
};
const fixed = (value, digits) => value.toLocaleString('en',
  {minimumFractionDigits: digits, maximumFractionDigits: digits});
const places = (step) => Math.min(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), 12);
const show = (value, unit, step) => {
  if (unit === 'percent') return fixed(100 * value, step ? places(100 * step) : 1) + ' %';
  if (step >= 1e-6 && step < 1e6) return fixed(value, places(step));
  if (Math.abs(value) >= 1000) return fixed(value, 0);
  return String(Number(value.toPrecision(4)));
};

/* The mean over `window` points around each, by running sums; a gap stays a gap. */
const smooth = (values, window, steps) => {
  if (window < 2) return values;
  // before a step at which a mean is over other seeds there is a gap at half a step
  const wall = steps.findIndex((step, i) => values[i] === null && step % 1 === 0.5);
  if (wall >= 0) return [...smooth(values.slice(0, wall), window, []), null,
    ...smooth(values.slice(wall + 1), window, steps.slice(wall + 1))];
  const sums = [0], counts = [0];
  values.forEach((value, i) => {
    sums.push(sums[i] + (value ?? 0));
    counts.push(counts[i] + (value === null ? 0 : 1));
  });
  const half = Math.floor(window / 2);
  return values.map((value, i) => {
    const a = Math.max(0, i - half), b = Math.min(values.length, i + half + 1);
    return value === null ? null : (sums[b] - sums[a]) / (counts[b] - counts[a]);
  });
};

/* A number on an axis that may be long: 1.2 M (1.2 B: billions) instead of 1,200,000. */
const brief = (value, step) => {
  const size = Math.max(Math.abs(value), step);
  if (value === 0) return '0';
  for (const [name, unit] of [['B', 1e9], ['M', 1e6], ['k', 1e4]])
    if (size >= unit) {
      const scale = name === 'k' ? 1e3 : unit;
      return fixed(value / scale, Math.min(places(step / scale), 3)) + ' ' + name;
    }
  return show(value, 'number', step);
};

/* Which of the values from `a` to `b` draw the same curve: each bucket's lowest and highest. */
const thinned = (values, a, b, most) => {
  const chosen = [];
  const size = Math.max(1, Math.ceil(2 * (b - a) / most));
  for (let start = a; start < b; start += size) {
    const end = Math.min(start + size, b);
    if (size < 2) { chosen.push(start); continue; }
    let low = null, high = null, gap = null;
    for (let i = start; i < end; i++) {
      if (values[i] === null) gap = i;
      else {
        if (low === null || values[i] < values[low]) low = i;
        if (high === null || values[i] > values[high]) high = i;
      }
    }
    chosen.push(...[...new Set([low, high, gap])].filter((i) => i !== null).sort((x, y) => x - y));
  }
  if (b > a && chosen.at(-1) !== b - 1) chosen.push(b - 1);
  return chosen;
};
