"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  const read = (id) => JSON.parse($(id).textContent);
  const data = read("data"), palettes = read("palettes"), plots = read("plots");
  const side = data.tokens / data.cell, groups = Math.ceil(data.tokens / data.group);
  const VISIBLE = 0.45; // tint of a faint cell of which a single key is kept
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const at = { head: 2, theta: 9, tail: 0, row: 0, column: 0, zoom: 1 };

  // What is packed

  async function bytes(text) {
    const raw = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const unpacked = new Map();

  async function unpack(number) {
    if (!unpacked.has(number)) {
      const head = data.heads[number];
      const [levels, pairs, candidates] = await Promise.all(
        [head.levels, head.pairs, head.least].map(bytes));
      // Of each cell where in `pairs` its largest pair stands.
      const places = new Int32Array(levels.length);
      for (let cell = 0, next = 0; cell < levels.length; cell++) {
        places[cell] = levels[cell] >= data.named ? next++ : -1;
      }
      // Of each group and key the first θ that keeps it: 0 for those that are always kept.
      const least = new Uint8Array(groups * data.tokens);
      for (let g = 0, next = 0; g < groups; g++) {
        for (let key = data.init; key < g * data.group; key++) {
          least[g * data.tokens + key] = candidates[next++];
        }
      }
      unpacked.set(number, { levels, pairs, places, least });
    }
    return unpacked.get(number);
  }

  const cellOf = (row, column) => (row * (row + 1)) / 2 + column;
  const groupOf = (row) => Math.floor((row * data.cell) / data.group);
  const inTail = (row) => row * data.cell >= data.tokens - data.tails[at.tail];
  const always = (row, key) => key < data.init || key >= groupOf(row) * data.group;
  const keeps = (head, row, key) =>
    always(row, key) || inTail(row) || head.least[groupOf(row) * data.tokens + key] <= at.theta;

  // How many keys of each column of cells a group keeps.
  function counts(head, group) {
    const found = new Uint8Array(side);
    for (let key = 0; key < data.tokens; key++) {
      found[Math.floor(key / data.cell)] += keeps(head, (group * data.group) / data.cell, key);
    }
    return found;
  }

  // The pictures

  async function embed(name) {
    const views = await Bokeh.embed.embed_item(plots[name], name);
    const { model, canvas } = [...views][0];
    canvas.events_el.tabIndex = -1; // has no use for keys, and shows no focus: the map around it does
    return (part) => (part ? model.document.get_model_by_name(part) : model);
  }

  function paint(head) {
    const { kept, skipped } = palettes[dark.matches ? "dark" : "light"];
    const colours = new Uint8ClampedArray(4 * side * side); // later keys stay transparent
    const ofGroup = Array.from({ length: groups }, (_, g) => counts(head, g));
    for (let row = 0; row < side; row++) {
      const n = inTail(row) ? null : ofGroup[groupOf(row)];
      for (let column = 0; column <= row; column++) {
        const cell = cellOf(row, column), level = head.levels[cell], place = head.places[cell];
        const keys = n ? n[column] : data.cell;
        let share = keys ? VISIBLE + ((1 - VISIBLE) * keys) / data.cell : 0;
        if (place >= 0) { // known is the very pair that the colour is of
          share = Number(keeps(head, row, column * data.cell + (head.pairs[place] % data.cell)));
        }
        const pixel = 4 * (row * side + column);
        for (let part = 0; part < 3; part++) {
          colours[pixel + part] =
            share * kept[level][part] + (1 - share) * skipped[level][part];
        }
        colours[pixel + 3] = 255;
      }
    }
    const source = map("pixels").data_source;
    const Pixels = source.data.image[0].constructor;
    source.data = { image: [new Pixels(colours.buffer, [side, side])] };
  }

  function plot() {
    const line = (tail) => {
      const rows = data.heads[at.head].numbers[tail];
      return { x: rows.map((row) => row[0]), y: rows.map((row) => row[1]) };
    };
    const now = line(at.tail), index = data.thetas.indexOf(at.theta);
    const marks = [0, 12, 20].map((theta) => data.thetas.indexOf(theta));
    curve("other").data_source.data = line(1 - at.tail);
    curve("line").data_source.data = now;
    curve("dots").data_source.data = now;
    curve("here").data_source.data = { x: [now.x[index]], y: [now.y[index]] };
    curve("labels").data_source.data = {
      x: marks.map((i) => now.x[i]),
      y: marks.map((i) => now.y[i]),
      text: marks.map((i) => `θ = ${data.thetas[i]}`),
      align: marks.map((i) => (now.x[i] > 0.85 ? "right" : "left")),
      shift: marks.map((i) => (now.x[i] > 0.85 ? 4 : 8)),
    };
  }

  function recolour() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    for (const part of [map(), curve()]) {
      for (const axis of [...part.above, ...part.below, ...part.left]) {
        axis.setv({
          axis_line_color: colour("line"), major_tick_line_color: colour("line"),
          major_label_text_color: colour("dim"), axis_label_text_color: colour("ink"),
        });
      }
    }
    for (const name of ["at query", "at key"]) map(name).line_color = colour("cross");
    curve("line").glyph.line_color = { value: colour("accent") };
    curve("other").glyph.line_color = { value: colour("dim") };
    curve("dots").glyph.fill_color = { value: colour("accent") };
    curve("here").glyph.setv({
      fill_color: { value: colour("paper") }, line_color: { value: colour("accent") },
    });
    curve("labels").glyph.text_color = { value: colour("dim") };
    const { kept, skipped } = palettes[dark.matches ? "dark" : "light"];
    for (const [id, colours] of [["bar-kept", kept], ["bar-skipped", skipped]]) {
      $(id).style.background =
        `linear-gradient(to right, ${colours.map((rgb) => `rgb(${rgb})`).join()})`;
    }
  }

  // The words

  const visible = (token) => token.replaceAll("\n", "⏎");

  function context(element, token, marked) {
    const part = (from, to) => document.createTextNode(visible(words.slice(from, to).join("")));
    let start = Math.max(0, token - 8);
    while (start < token && !/^\s/.test(words[start])) start++; // no part of a word
    element.replaceChildren(part(start, token));
    if (marked) {
      const word = document.createElement("b");
      word.textContent = visible(words[token]).trim() || "␣";
      if (words[token].startsWith(" ")) element.append(" ");
      element.append(word, part(token + 1, token + 7));
    } else {
      element.append(part(token, token + 9));
    }
    element.append(` (token ${token})`);
  }

  function pairAt(head) {
    if (at.column > at.row) return null;
    const cell = cellOf(at.row, at.column);
    const level = head.levels[cell], place = head.places[cell];
    const first = { query: at.row * data.cell, key: at.column * data.cell, level };
    if (place < 0) return first;
    const pair = head.pairs[place];
    return {
      query: first.query + Math.floor(pair / data.cell), key: first.key + (pair % data.cell),
      level, weight: 10 ** ((level / data.levels - 1) * data.decades),
    };
  }

  const digits = (weight) => weight.toFixed(weight >= 0.1 ? 2 : weight >= 0.01 ? 3 : 4);

  function tell(head) {
    const pair = pairAt(head);
    map("at query").location = (at.row + 0.5) * data.cell;
    map("at key").location = (at.column + 0.5) * data.cell;
    if (!pair) {
      context($("query-words"), at.row * data.cell, false);
      context($("key-words"), at.column * data.cell, false);
      $("verdict").textContent = "These keys come later than the query: nobody looks ahead.";
      return;
    }
    context($("query-words"), pair.query, "weight" in pair);
    context($("key-words"), pair.key, "weight" in pair);
    const first = at.column * data.cell;
    let kept = 0;
    for (let key = first; key < first + data.cell; key++) kept += keeps(head, at.row, key);
    const cell = `Of the cell’s ${data.cell} keys ${kept || "none"} ${kept === 1 ? "is" : "are"} computed.`;
    if (!("weight" in pair)) {
      $("verdict").textContent = `Every pair of this cell weighs less than 0.001. ${cell}`;
      return;
    }
    const least = head.least[groupOf(at.row) * data.tokens + pair.key];
    let why = `skipped: kept from θ = ${least} on`;
    if (least === data.never) why = `skipped: not kept by any θ up to ${data.thetas.at(-1)}`;
    if (keeps(head, at.row, pair.key)) {
      why = `computed as a stripe, from θ = ${least} on`;
      if (inTail(at.row)) why = "computed: the query is in the tail";
      if (pair.key < data.init) why = "computed: the key is in the initial region";
      if (pair.key >= groupOf(at.row) * data.group) why = "computed: the key is in the window";
    }
    $("verdict").replaceChildren();
    const weight = document.createElement("strong");
    weight.textContent = `weight ≈ ${digits(pair.weight)}`;
    $("verdict").append(weight, `, ${why}. ${cell}`);
  }

  function magnify() {
    const plot = map(), size = data.tokens / at.zoom;
    const start = (cell) =>
      Math.min(Math.max(0, (cell + 0.5) * data.cell - size / 2), data.tokens - size);
    const x = start(at.column), y = start(at.row);
    plot.x_range.setv({ start: x, end: x + size });
    plot.y_range.setv({ start: y + size, end: y });
    const ticks = (from) => [0, 1, 2, 3, 4].map((i) => Math.round(from + (i * size) / 4));
    plot.above[0].ticker.ticks = ticks(x);
    plot.left[0].ticker.ticks = ticks(y);
    $("zoom").setAttribute("aria-pressed", String(at.zoom > 1));
  }

  // The cell whose largest pair is the heaviest of those wanted.
  function heaviest(head, wanted) {
    let best = null, most = -1;
    for (let row = 0, cell = 0; row < side; row++) {
      for (let column = 0; column <= row; column++, cell++) {
        if (head.places[cell] < 0 || head.levels[cell] <= most) continue;
        const key = column * data.cell + (head.pairs[head.places[cell]] % data.cell);
        if (wanted(row, key)) [best, most] = [[row, column], head.levels[cell]];
      }
    }
    return best;
  }

  // What follows from the controls

  async function show() {
    const number = at.head, head = await unpack(number);
    if (number !== at.head) return; // another one was chosen meanwhile
    const [density, beyond, all, worst] =
      data.heads[number].numbers[at.tail][data.thetas.indexOf(at.theta)];
    $("head").value = number;
    $("theta").value = at.theta;
    $("theta").setAttribute("aria-valuetext", `θ = ${at.theta}`);
    $("theta-value").textContent = at.theta;
    $("tail").checked = at.tail === 1;
    $("density").textContent = `${(100 * density).toFixed(1)} %`;
    $("beyond").textContent = beyond.toFixed(3);
    $("all").textContent = all.toFixed(3);
    $("worst").textContent = worst.toFixed(3);
    const { layer, head: name } = data.heads[number];
    const what = `layer ${layer}, head ${name}, θ = ${at.theta}, tail ${data.tails[at.tail]}`;
    const says = `${$("density").textContent} of the pairs kept, recall beyond the first group ` +
      `${beyond.toFixed(3)}, worst row ${worst.toFixed(3)}`;
    $("picture-title").textContent = `Layer ${layer}, head ${name}, at θ = ${at.theta}${at.tail ? ", with a tail" : ""}`;
    $("map").setAttribute("aria-label", `Attention map of ${what}: ${says}.`);
    const rows = data.heads[number].numbers[at.tail];
    $("curve").setAttribute("aria-label",
      `Recall beyond the first group by pairs kept, ${what}: from ${rows[0][1].toFixed(3)} with ` +
      `${(100 * rows[0][0]).toFixed(1)} % at θ = 0 to ${rows.at(-1)[1].toFixed(3)} with ` +
      `${(100 * rows.at(-1)[0]).toFixed(1)} % at θ = 20; here ${says}.`);
    paint(head);
    plot();
    magnify();
    tell(head);
    document.body.dataset.shown = `${number} ${at.theta} ${at.tail}`;
  }

  const inside = (cell) => Math.min(Math.max(0, cell), side - 1);

  async function move(row, column) {
    at.row = inside(row);
    at.column = inside(column);
    if (at.zoom > 1) magnify();
    tell(await unpack(at.head));
  }

  let waiting = null; // one reading for each frame, however fast the pointer moves
  window.pointAt = (x, y) => {
    if (waiting === null) {
      requestAnimationFrame(async () => {
        const { row, column } = waiting;
        waiting = null;
        Object.assign(at, { row, column }); // a magnified map stays where it is
        tell(await unpack(at.head));
      });
    }
    waiting = { row: inside(Math.floor(y / data.cell)), column: inside(Math.floor(x / data.cell)) };
  };

  $("head").addEventListener("change", (event) => { at.head = Number(event.target.value); show(); });
  $("theta").addEventListener("input", (event) => { at.theta = Number(event.target.value); show(); });
  $("tail").addEventListener("change", (event) => { at.tail = Number(event.target.checked); show(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("map").addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const [down, right] = steps[event.key].map((step) => step * (event.shiftKey ? 8 : 1));
    move(at.row + down, at.column + right);
  });
  $("zoom").addEventListener("click", () => { at.zoom = at.zoom > 1 ? 1 : 8; magnify(); });
  $("lookup").addEventListener("click", () => {
    const { head, query, key } = data.lookup;
    Object.assign(at, { head, row: Math.floor(query / data.cell), column: Math.floor(key / data.cell) });
    show();
  });
  $("dropped").addEventListener("click", async () => {
    const head = await unpack(at.head);
    const best = heaviest(head, (row, key) => !keeps(head, row, key));
    if (best) move(...best);
    else $("verdict").textContent = "Of the cells’ heaviest pairs of 0.001 or more none is skipped.";
  });
  dark.addEventListener("change", () => { recolour(); show(); });

  let words, map, curve;
  try {
    words = JSON.parse(new TextDecoder().decode(await bytes(data.words)));
  } catch (error) {
    $("failed").hidden = false;
    throw error;
  }
  [map, curve] = await Promise.all([embed("map"), embed("curve")]);
  recolour();
  const first = await unpack(at.head);
  const far = (row, key) => key < row * data.cell - data.group && !always(row, key);
  [at.row, at.column] = heaviest(first, (row, key) => far(row, key) && keeps(first, row, key));
  await show();
})();
