for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column]?.textContent.trim() ?? "";
      const order = (one, other) => {
        const [a, b] = [key(one), key(other)], [x, y] = [a, b].map(text => parseFloat(text.replace(/,/g, "")));
        return isNaN(x) || isNaN(y) ? isNaN(y) - isNaN(x) || b.localeCompare(a, undefined, {numeric: true}) : y - x;
      };
      const rows = [...table.tBodies[0].rows].sort(order);
      table.tBodies[0].append(...(down ? rows : rows.reverse()));
    });
  });
}
