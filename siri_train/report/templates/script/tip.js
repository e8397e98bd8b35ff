const tip = document.createElement('div');
tip.id = 'tip';
tip.setAttribute('role', 'status');
document.body.append(tip);
const place = (clientX, clientY) => {
  const size = tip.getBoundingClientRect();
  const right = clientX + 16 + size.width > innerWidth;
  tip.style.left = Math.max(4, right ? clientX - size.width - 16 : clientX + 16) + 'px';
  tip.style.top = Math.max(4, clientY - size.height - 12) + 'px';
  tip.style.visibility = 'visible';
};
const hide = () => { tip.style.visibility = 'hidden'; };
