/* While siri-train report --serve shows a run that goes on: a new page when its files change.
   A page that was opened as a file has no address to ask, and asks none. */
const live = document.documentElement.dataset.state;
if (live !== undefined) {
  const line = field('refreshes'), pause = field('pause');
  const every = 1000 * Number(document.documentElement.dataset.every);
  let paused = false, changed = false;
  const busy = () => {
    const here = document.activeElement;
    return here && here.matches('input, select') && here.type !== 'range'
      || !document.getSelection().isCollapsed;
  };
  const say = (text) => { if (line.textContent !== text) line.textContent = text; };
  const ask = async () => {
    let wait = every;
    if (!document.hidden && !paused) {
      try {
        const answer = await fetch('state', {cache: 'no-store'});
        if (!answer.ok) throw new Error(answer.status);
        changed = await answer.text() !== live;
        say(changed ? 'New figures: shown when you are done here.' : 'Refreshes by itself.');
      } catch {
        say('siri-train report --serve does not answer: these are the last figures it showed.');
        wait = 4 * every;
      }
      if (changed && !busy()) { location.reload(); return; }
    }
    setTimeout(ask, wait);
  };
  pause.addEventListener('click', () => {
    paused = !paused;
    pause.textContent = paused ? 'Go on refreshing' : 'Stop refreshing';
    if (paused) say('Does not refresh.');
  });
  setTimeout(ask, every);
}
