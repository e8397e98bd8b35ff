"""The report's style sheet and its one script: the page reads the same without the script."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1d2129; --soft: #5a6270; --line: #e3e5e9;
  --grid: #eceef1; --shade: #f4efe6; --siri: #0a6cb0; --control: #737a86; --low: #b84f00;
  --high: #00795a; --alt1: #8450b0; --alt2: #96600c; --alt3: #b0305c;
  --good: #00795a; --bad: #a8431a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1b1e24; --ink: #e7e9ed; --soft: #a2a9b5; --line: #2f343d;
    --grid: #292e36; --shade: #24231f; --siri: #6cb8f6; --control: #959ca8; --low: #f2a254;
    --high: #4fcba2; --alt1: #c79bea; --alt2: #d9b25c; --alt3: #f08cab;
    --good: #4fcba2; --bad: #f2a254;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 56px; }
.over { margin: 0; color: var(--soft); font-size: 14px; letter-spacing: .04em; }
h1 { margin: 4px 0 8px; font-size: 36px; line-height: 1.2; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
h2 { margin: 64px 0 8px; font-size: 23px; line-height: 1.3; letter-spacing: -.01em; }
h3 { margin: 0 0 10px; font-size: 16px; line-height: 1.35; }
p { margin: 0 0 12px; max-width: 68ch; }
p.facts { max-width: none; }
.lead { margin-top: 24px; font-size: 20px; line-height: 1.5; }
.facts, .soft, figcaption, caption { color: var(--soft); font-size: 14.5px; line-height: 1.5; }
.ink { color: var(--c); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.warn { border-left: 4px solid var(--low); padding: 14px 18px; margin: 24px 0 0; }
.warn.quiet { border-left-color: var(--control); } .warn h3 { margin-bottom: 4px; }
.warn ul { margin: 0; padding-left: 20px; font-size: 15px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding-top: 12px; }
th, td { padding: 12px 14px; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { font-size: 13.5px; font-weight: 500; color: var(--soft); padding-bottom: 6px; }
tbody th { font-weight: 600; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; }
.headline td { font-size: 18px; line-height: 1.4; }
.headline th:first-child, .headline td:first-child { padding-left: 0; }
.headline th:last-child, .headline td:last-child { padding-right: 0; }
.under { display: block; font-size: 13px; font-weight: 400; color: var(--soft); }
.under.good { color: var(--good); } .under.bad { color: var(--bad); }
.meter { display: block; height: 4px; margin: 6px 0 0 auto; width: 120px; max-width: 100%;
  border-radius: 2px; background: var(--grid); overflow: hidden; }
.meter span { display: block; height: 100%; background: var(--c); border-radius: 2px; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 9px;
  background: var(--c); }
.siri { --c: var(--siri); } .control { --c: var(--control); } .low { --c: var(--low); }
.high { --c: var(--high); } .start, .cap, .other { --c: var(--ink); } .alt1 { --c: var(--alt1); }
.alt2 { --c: var(--alt2); } .alt3 { --c: var(--alt3); }
.split { display: grid; grid-template-columns: minmax(0, 2.1fr) minmax(0, 1fr); gap: 28px;
  align-items: start; margin-top: 20px; }
.runs { list-style: none; margin: 20px 0 0; padding: 0; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 24px;
  margin-top: 20px; }
figure { margin: 0; padding: 18px 20px 16px; }
figcaption { margin-top: 8px; }
svg.plot { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y; }
svg.small { display: none; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
  fill: var(--soft); font-variant-numeric: tabular-nums; }
svg text.note { font-size: 11px; } svg text.label { fill: var(--c); font-weight: 600; }
svg text.label.big { font-size: 14px; paint-order: stroke; stroke: var(--card); stroke-width: 4px;
  stroke-linejoin: round; }
svg text.note.low, svg text.note.high { fill: var(--c); font-weight: 600; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--soft); stroke-opacity: .6; }
.span { fill: none; } .span.compression { fill: var(--shade); }
.mark { stroke: var(--c); stroke-dasharray: 2 3; stroke-opacity: .8; }
.curve { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round;
  stroke-linecap: round; }
.curve.dashed { stroke-dasharray: 5 4; stroke-width: 1.6; }
.curve.faint { stroke-width: 1; stroke-opacity: .28; }
.curve.thread { stroke-width: 1.4; stroke-opacity: .55; }
.curve.path { stroke-width: 1.8; stroke-opacity: .5; }
.curve.cap { stroke-width: 1.4; stroke-dasharray: 5 3; }
.control.curve { stroke-width: 1.5; } .control.curve.faint { stroke-width: 1; }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 1; } .dot.big { stroke-width: 2; }
.dot.small { fill-opacity: .75; }
.ring { fill: var(--card); stroke: var(--c); stroke-width: 1.7; }
.bar { fill: none; stroke: var(--c); stroke-width: 1.4; stroke-opacity: .7; }
.head { fill: var(--c); fill-opacity: .75; } .band { fill: var(--c); fill-opacity: .13; }
.leader { stroke: var(--soft); stroke-opacity: .5; stroke-dasharray: 1 3; }
.guide { stroke: var(--soft); visibility: hidden; } .guide.on { visibility: visible; }
.legend { display: none; margin: 0 0 8px; font-size: 13.5px; gap: 2px 14px; flex-wrap: wrap; }
.legend svg { width: 22px; height: 10px; margin-right: 5px; vertical-align: middle; }
details { margin-top: 12px; padding: 0 20px; } details[open] { padding-bottom: 16px; }
summary { cursor: pointer; padding: 14px 0; font-weight: 600; }
details th, details td { padding: 6px 10px; font-size: 14px; }
pre { margin: 0; font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.sample { min-width: 0; } details .grid { margin: 4px 0; gap: 32px 40px; }
.sample pre + h4 { margin-top: 14px; }
h4 { margin: 0 0 4px; font-size: 13px; font-weight: 500; color: var(--soft); }
.tags { margin: 0 0 12px; font-size: 14px; } .tags b { margin-right: 8px; }
mark { background: none; color: var(--low); font-weight: 600; border-bottom: 2px solid var(--low); }
footer { padding-top: 48px; padding-bottom: 64px; }
footer p { color: var(--soft); font-size: 14px; }
a { color: var(--siri); }
#tip { position: fixed; z-index: 9; pointer-events: none; padding: 7px 11px; border-radius: 8px;
  background: var(--ink); color: var(--paper); font-size: 13px; line-height: 1.45; max-width: 280px;
  font-variant-numeric: tabular-nums; visibility: hidden; }
#tip div { display: flex; gap: 14px; justify-content: space-between; }
@media (max-width: 860px) {
  .grid, .split { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 560px) {
  main, header, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 32px; } h1 { font-size: 28px; } .lead { font-size: 17.5px; }
  h2 { margin-top: 48px; } figure { padding: 14px 12px; }
  svg.small { display: block; } svg.large { display: none; } .legend { display: flex; }
  th, td { padding: 8px 6px; } .headline thead, .headline .hide { display: none; }
  .headline table { display: flex; flex-direction: column; } .headline tbody { display: block; }
  .headline caption { display: block; order: 2; }
  .headline tr { display: grid; grid-template-columns: repeat(auto-fit, minmax(96px, 1fr));
    gap: 0 8px; padding: 10px 0;
    border-bottom: 1px solid var(--line); }
  .headline th, .headline td { border: 0; padding: 2px 0; text-align: left; font-size: 15px; }
  .headline tbody th { grid-column: 1 / -1; }
  .headline tbody th .under { display: inline; margin-left: 8px; }
  .headline td::before { content: attr(data-title); display: block; font-size: 12.5px;
    color: var(--soft); }
  .meter { width: 84px; margin-left: 0; }
}
@media print {
  :root { --paper: #fff; --shade: #f3f3f3; } body { font-size: 11pt; }
  main, header, footer { max-width: none; padding-left: 0; padding-right: 0; }
  .card { border-color: #ccc; } figure, .sample, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } #tip { display: none; }
}
"""

SCRIPT = """
(() => {
  const tip = document.createElement('div');
  tip.id = 'tip';
  document.body.append(tip);
  const place = (event) => {
    const box = tip.getBoundingClientRect();
    const right = event.clientX + 16 + box.width > innerWidth;
    const left = right ? event.clientX - box.width - 16 : event.clientX + 16;
    tip.style.left = Math.max(4, left) + 'px';
    tip.style.top = Math.max(4, event.clientY - box.height - 12) + 'px';
    tip.style.visibility = 'visible';
  };
  const hide = () => { tip.style.visibility = 'hidden'; };
  const write = (value, unit) => {
    if (unit === 'percent') return (100 * value).toFixed(1) + ' %';
    const digits = Math.abs(value) >= 100 ? 0 : 3;
    return Math.abs(value) >= 100 ? value.toLocaleString('en', {maximumFractionDigits: digits})
      : String(Number(value.toPrecision(3)));
  };
  for (const figure of document.querySelectorAll('figure[data-hover]')) {
    const data = JSON.parse(figure.dataset.hover);
    for (const svg of figure.querySelectorAll('svg[data-plot]')) {
      const [left, right, low, high] = svg.dataset.plot.split(' ').map(Number);
      const guide = svg.querySelector('.guide');
      svg.addEventListener('pointermove', (event) => {
        const box = svg.getBoundingClientRect();
        const at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
        const want = low + (at - left) / (right - left) * (high - low);
        let near = null;
        for (const line of data.lines) for (const [x] of line.points)
          if (near === null || Math.abs(x - want) < Math.abs(near - want)) near = x;
        if (near === null || at < left - 8 || at > right + 8) { svg.onpointerleave(); return; }
        const px = left + (near - low) / (high - low) * (right - left);
        guide.setAttribute('x1', px); guide.setAttribute('x2', px); guide.classList.add('on');
        tip.replaceChildren();
        const head = document.createElement('b');
        head.textContent = data.x + ' ' + near;
        tip.append(head);
        for (const line of data.lines) {
          const point = line.points.find(([x]) => x === near);
          if (!point) continue;
          const row = document.createElement('div');
          for (const text of [line.label, write(point[1], data.unit)]) {
            const part = document.createElement('span');
            part.textContent = text;
            row.append(part);
          }
          tip.append(row);
        }
        place(event);
      });
      svg.onpointerleave = () => { hide(); guide.classList.remove('on'); };
    }
  }
  for (const title of document.querySelectorAll('circle > title')) {
    const spot = title.parentNode;
    const text = title.textContent;
    spot.setAttribute('aria-label', text);
    title.remove();
    spot.addEventListener('pointermove', (event) => { tip.textContent = text; place(event); });
    spot.addEventListener('pointerleave', hide);
  }
})();
"""
