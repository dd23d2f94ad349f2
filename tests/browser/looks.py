"""What is asked of a page in the browser: JavaScript that gives a list of complaints, empty where all is well."""

from __future__ import annotations

OPEN_ALL = "() => document.querySelectorAll('details').forEach(fold => { fold.open = true; })"

# Nothing is wider than the window but what scrolls by itself; the words of a picture stay inside and apart.
FITS = """() => {
  const room = document.documentElement.clientWidth, found = [];
  const name = node => `<${node.tagName.toLowerCase()} class="${node.getAttribute('class') || ''}"> ${
    node.textContent.trim().slice(0, 40)}`;
  if (document.documentElement.scrollWidth > room)
    found.push(`the page is ${document.documentElement.scrollWidth} wide in ${room}`);
  for (const node of document.querySelectorAll('main *')) {
    const box = node.getBoundingClientRect();
    if (!box.width || node.closest('svg') || node.parentElement.closest('.scroll')) continue;
    if (box.right > room + 1 || box.left < -1)
      found.push(`${name(node)} ends at ${Math.round(box.right)} of ${room}`);
    if (getComputedStyle(node).overflowX === 'hidden' && node.scrollWidth > node.clientWidth + 1)
      found.push(`${name(node)} is cut off`);
  }
  for (const picture of document.querySelectorAll('svg')) {
    const frame = picture.getBoundingClientRect();
    if (!frame.width) continue;
    const words = [...picture.querySelectorAll('text')].map(node => [node, node.getBoundingClientRect()])
      .filter(([, box]) => box.width);
    for (const [node, box] of words)
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
          box.bottom > frame.bottom + 1) found.push(`${name(node)} leaves its picture`);
    const level = words.filter(([node]) => !node.hasAttribute('transform'));
    level.forEach(([one, a], n) => level.slice(n + 1).forEach(([other, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 3) found.push(`${name(one)} runs into ${name(other)}`);
    }));
  }
  return found.slice(0, 12);
}"""

# Every picture has marks, each can be told from what is behind it, and one stands out (3 : 1, as WCAG asks).
SEEN = """() => {
  const colour = text => {
    const parts = text.match(/[\\d.]+/g);
    if (!parts || parts.length < 3 || text.startsWith('url')) return null;
    return { rgb: parts.slice(0, 3).map(Number), alpha: parts.length > 3 ? Number(parts[3]) : 1 };
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found && found.alpha > 0) return found.rgb;
    }
    return [255, 255, 255];
  };
  const seen = (paint, opacity, ground) => {
    const found = colour(paint);
    if (!found || !(found.alpha * opacity)) return 0;
    const share = found.alpha * opacity;
    return ratio(found.rgb.map((v, n) => share * v + (1 - share) * ground[n]), ground);
  };
  const found = [];
  for (const picture of document.querySelectorAll('svg')) {
    if (!picture.getBoundingClientRect().width) continue;
    const ground = behind(picture.parentElement);
    const label = picture.getAttribute('aria-label');
    let best = 0, marks = 0;
    for (const mark of picture.querySelectorAll('rect, circle, polyline, line:not(.grid)')) {
      const style = getComputedStyle(mark), opacity = Number(style.opacity);
      const strength = Math.max(seen(style.fill, opacity * style.fillOpacity, ground),
                                seen(style.stroke, opacity * style.strokeOpacity, ground));
      if (strength < 1.08)
        found.push(`${label}: a <${mark.tagName} class="${mark.getAttribute('class')}"> is hidden`);
      marks += 1;
      best = Math.max(best, strength);
    }
    if (!marks) found.push(`${label}: no marks`);
    else if (best < 3) found.push(`${label}: the strongest mark has ${best.toFixed(2)} : 1`);
    if (!label) found.push('a picture without a label');
  }
  for (const bar of document.querySelectorAll('.bar'))
    if (seen(getComputedStyle(bar).backgroundColor, 1, behind(bar.parentElement)) < 3) found.push('a pale bar');
  return found.slice(0, 12);
}"""

# Numbers what the keyboard should reach, and says how many there are.
NUMBER = """() => {
  const nodes = [...document.querySelectorAll('summary, a[href], button, [tabindex="0"]')];
  const visible = nodes.filter(node => node.checkVisibility() && node.getBoundingClientRect().width);
  visible.forEach((node, n) => { node.dataset.stop = n; });
  document.activeElement?.blur?.();
  return visible.length;
}"""
STOP = "() => document.activeElement?.dataset?.stop ?? null"
