/* Adds to the pictures of the page: values under the pointer, zoom, curves switched on and off,
   smoothing. Without this script the page shows the same charts, at rest. report/script.py joins
   the files of this folder into one function. */
const NS = 'http://www.w3.org/2000/svg';
const data = JSON.parse(document.getElementById('data').textContent);
const all = (root, what) => [...root.querySelectorAll(what)];
const field = (id) => document.getElementById(id);
// `from` and `to` are places on the axis, null: its ends; `runs`: those switched off
const waiting = new Set(data.waiting);  // runs that are not drawn when the page opens
const state = {axis: 'step', from: null, to: null, window: null, runs: new Set(waiting)};
const narrow = matchMedia('(max-width: 560px)');

const make = (name, attributes, text) => {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
