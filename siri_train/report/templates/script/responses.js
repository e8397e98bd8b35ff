/* The browser of responses: chosen by run, step, grade, question, length and words. A response is
   written into the page when it is opened, and entries a few dozen at a time. */
const PART = 40;
const browser = field('browser');
const filters = browser ? Object.fromEntries(all(browser, '[data-filter]')
  .map((input) => [input.dataset.filter, input])) : {};
const browsed = browser ? JSON.parse(field('responses').textContent) : {rows: []};
const lastStep = String(Math.max(...browsed.rows.map((row) => row.step)));
const chosenResponses = () => Object.entries(filters)
  // the last step is what the page shows unasked, whichever it is by then
  .filter(([key, input]) => input.value !== '' && !(key === 'step' && input.value === lastStep))
  .map(([key, input]) => [key, input.value]);
const element = (name, css, ...parts) => {
  const node = document.createElement(name);
  if (css) node.className = css;
  node.append(...parts);
  return node;
};
const GRADES = {right: 'right', wrong: 'wrong', unjudged: 'not judged'};
const graded = (row) => row.truncated ? `${GRADES[row.grade]}, truncated` : GRADES[row.grade];
/* Without ids a question is its text. */
const questionOf = (row) => row.question ?? `prompt ${row.prompt}`;

/* A text in which the marked words are marked; `from` is where it begins in the response. */
const marked = (row, text, from) => {
  const pre = document.createElement('pre');
  let at = 0;
  for (let i = 0; i + 2 < row.marks.length; i += 3) {
    const [a, b] = [row.marks[i] - from, row.marks[i + 1] - from];
    if (a < at || b > text.length) continue;
    const group = row.marks[i + 2];
    const word = element('mark', `g${group % 6}`, text.slice(a, b));
    word.title = browsed.groups[group];
    pre.append(text.slice(at, a), word);
    at = b;
  }
  pre.append(text.slice(at));
  return pre;
};
const body = (row) => {
  const part = element('div', 'sample');
  const question = element('button', '', 'All answers to this question');
  question.type = 'button';
  question.addEventListener('click', () => {
    for (const input of Object.values(filters)) input.value = '';
    filters.question.value = questionOf(row);
    listed();
    remember();
    filters.question.focus();
  });
  part.append(element('h4', '', 'Question'), element('pre', '', browsed.prompts[row.prompt]),
    element('p', 'again', question), element('h4', '', 'Response'), marked(row, row.text, 0));
  if (row.tail) part.append(
    element('p', 'gap', `${fixed(row.hidden, 0)} characters left out here`),
    marked(row, row.tail, row.text.length));
  if (row.truncated) part.append(element('p', 'cut', 'truncated here'
    + (row.cap === null ? '' : `: cap ${fixed(row.cap, 0)} tokens`)
    + (row.grade === 'right' ? '; right all the same, its answer stands before this' : '')));
  return part;
};
const entry = (row) => {
  const shut = element('details', 'card response');
  const good = row.grade === 'right' && !row.truncated;
  const facts = [data.axes.runs.length > 1 ? data.axes.runs[row.run].label : '',
    `step ${fixed(row.step, 0)}`, row.question === undefined ? '' : `question ${row.question}`,
    row.tokens === undefined ? '' : `${fixed(row.tokens, 0)} tokens`,
    row.answer === undefined ? 'no answer' : `answer ${row.answer}`,
    row.gold === undefined ? '' : `expected ${row.gold}`].filter((text) => text);
  shut.append(element('summary', '', element('b', `ink ${good ? 'high' : 'low'}`, graded(row)),
    element('span', 'facts', facts.join(' · '))));
  shut.addEventListener('toggle', () => {
    if (shut.open && shut.children.length === 1) shut.append(body(row));
  });
  return shut;
};

const fits = () => {
  const value = (key) => filters[key] ? filters[key].value : '';
  const words = value('words').toLowerCase();
  const [least, most] = ['least', 'most'].map((key) => value(key) === '' ? null
    : Number(value(key)));
  const grade = value('grade');
  const found = browsed.rows.filter((row) =>
    (value('run') === '' || String(row.run) === value('run'))
    && (value('step') === '' || String(row.step) === value('step'))
    && (value('question') === '' || questionOf(row) === value('question'))
    && (grade === '' || (grade === 'truncated' ? row.truncated
      : grade === 'cut-right' ? row.truncated && row.grade === 'right' : row.grade === grade))
    && (least === null || (row.tokens ?? -1) >= least)
    && (most === null || (row.tokens ?? Infinity) <= most)
    && (words === '' || [row.text, row.tail ?? '', browsed.prompts[row.prompt], row.answer ?? '']
      .some((text) => text.toLowerCase().includes(words))));
  const by = {long: (a, b) => (b.tokens ?? -1) - (a.tokens ?? -1),
    short: (a, b) => (a.tokens ?? Infinity) - (b.tokens ?? Infinity),
    question: (a, b) => questionOf(a).localeCompare(questionOf(b), 'en', {numeric: true})};
  return by[value('sort')] ? found.sort(by[value('sort')]) : found;
};
const listed = () => {
  const found = fits(), list = field('list');
  field('found').textContent = `${fixed(found.length, 0)} of ${fixed(browsed.rows.length, 0)} `
    + 'responses' + (found.length ? '; open one to read it.' : '. Fewer conditions find more.');
  list.replaceChildren();
  let shown = 0;
  const more = element('button', 'more', 'Show more');
  more.type = 'button';
  const write = () => {
    const next = found.slice(shown, shown + PART).map(entry);
    shown += next.length;
    more.remove();
    list.append(...next);
    if (shown < found.length) list.append(more);
    return next[0];
  };
  more.addEventListener('click', () => write().querySelector('summary').focus());
  write();
};
const chooseResponses = (entries) => {
  if (!browser) return;
  for (const [key, value] of entries) if (filters[key]) filters[key].value = value;
  if (entries.length && !entries.some(([key]) => key === 'step')
    && entries.some(([key]) => key === 'question')) filters.step.value = '';
  if (entries.length) listed();
};
if (browser) {
  browser.hidden = false;
  browser.addEventListener('submit', (event) => event.preventDefault());
  const option = (text, value) => {
    const one = element('option', '', text);
    one.value = value;
    return one;
  };
  const steps = [...new Set(browsed.rows.map((row) => row.step))].sort((a, b) => a - b);
  filters.step.append(...steps.map((step) => option(fixed(step, 0), step)));
  if (filters.run) filters.run.append(...data.axes.runs.map((run, i) => option(run.label, i)));
  const questions = new Map();
  for (const row of browsed.rows) if (!questions.has(questionOf(row))) {
    const start = browsed.prompts[row.prompt].trim().replace(/\s+/g, ' ').slice(-48);
    questions.set(questionOf(row), row.question === undefined ? start || 'without text'
      : `${row.question}: ${start}`);
  }
  filters.question.append(...[...questions].map(([key, text]) => option(text, key)));
  for (const button of all(browser, '[data-move]')) button.addEventListener('click', () => {
    const here = steps.indexOf(Number(filters.step.value || NaN));
    const way = Number(button.dataset.move);
    const next = here < 0 ? (way > 0 ? 0 : steps.length - 1) : here + way;
    if (next < 0 || next >= steps.length) return;
    filters.step.value = steps[next];
    listed();
    remember();
  });
  for (const input of Object.values(filters)) input.addEventListener('input', () => {
    listed();
    remember();
  });
  field('all-responses').addEventListener('click', () => {
    for (const input of Object.values(filters)) input.value = '';
    listed();
    remember();
  });
  if (browsed.groups.length) field('groups').append('Marked words: ', ...browsed.groups
    .flatMap((name, i) => [element('mark', `g${i % 6}`, name), ' ']));
  // the last step first: it is what the run has come to
  filters.step.value = steps.at(-1);
  listed();
}
