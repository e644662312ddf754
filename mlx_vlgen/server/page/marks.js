// Boxes, points and polygons drawn on the picture that they belong to.

import { button, download, h } from "./dom.js";

const COLORS = ["#ff5a5f", "#4cc9f0", "#ffd166", "#06d6a0", "#c77dff", "#f78c6b", "#a7c957", "#ff8fab"];
const LONGEST = 40; // characters of a label

/** The picture with its marks, and a button that saves it. picture: {blob, name, width, height}. marks: in its pixels. */
export function markedPicture(picture, marks) {
  const { width, height } = picture; // known at once, so that nothing moves once it is drawn
  const canvas = h("canvas", { role: "img", "aria-label": describe(marks), width, height });
  const figure = h("figure", { className: "marked" }, canvas);
  createImageBitmap(picture.blob).then((image) => {
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    draw(context, marks);
    canvas.dataset.drawn = marks.length;
  });
  const name = `${picture.name.replace(/\.\w+$/, "")}-marked.png`;
  const save = () => canvas.toBlob((blob) => download(blob, name));
  figure.append(h("figcaption", {}, describe(marks), button("save", "Save picture", save, { shown: true, className: "quiet" })));
  return figure;
}

/** "2 boxes: cat, dog" */
function describe(marks) {
  const plurals = { box: "boxes", point: "points", polygon: "polygons" };
  const counted = Object.keys(plurals).flatMap((type) => {
    const count = marks.filter((mark) => mark.type === type).length;
    return count ? [`${count} ${count === 1 ? type : plurals[type]}`] : [];
  });
  const labels = [...new Set(marks.map((mark) => mark.label).filter(Boolean))];
  return counted.join(", ") + (labels.length ? `: ${labels.join(", ")}` : "");
}

/** Lines are bright between dark edges, so that they show on light and on dark; marks of one label have one colour. */
function draw(context, marks) {
  const { width, height } = context.canvas;
  const line = Math.max(2, Math.round(Math.min(width, height) / 160));
  const labels = [...new Set(marks.map((mark) => mark.label))];
  const colored = marks.map((mark) => ({ ...mark, color: COLORS[labels.indexOf(mark.label) % COLORS.length] }));
  context.lineJoin = "round";
  for (const mark of colored) {
    context.beginPath();
    trace(context, mark, line);
    context.strokeStyle = "#000";
    context.lineWidth = line + 2 * Math.max(1, Math.floor(line / 3));
    context.stroke();
    context.strokeStyle = context.fillStyle = mark.color;
    context.lineWidth = line;
    if (mark.type === "point") context.fill();
    else context.stroke();
  }
  const size = Math.max(11, Math.round(Math.min(width, height) / 32));
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const mark of colored) if (mark.label) write(context, mark, size, line);
}

function trace(context, { type, points }, line) {
  if (type === "box") {
    const [[left, top], [right, bottom]] = points;
    context.rect(left, top, right - left, bottom - top);
  } else if (type === "point") context.arc(...points[0], 3 * line, 0, 2 * Math.PI);
  else {
    for (const point of points) context.lineTo(...point);
    context.closePath();
  }
}

/** The label, above the upper left corner where there is room. */
function write(context, { type, points, label, color }, size, line) {
  const text = label.length > LONGEST ? `${label.slice(0, LONGEST - 1)}…` : label;
  const beside = type === "point" ? 3 * line : 0;
  const width = context.measureText(text).width + size;
  const height = 1.5 * size;
  const left = Math.min(...points.map(([x]) => x)) + beside;
  const top = Math.min(...points.map(([, y]) => y)) - beside;
  const x = Math.max(0, Math.min(left - line / 2, context.canvas.width - width));
  const y = top - height >= 0 ? top - height : Math.max(0, Math.min(top, context.canvas.height - height));
  context.fillStyle = color;
  context.fillRect(x, y, width, height);
  context.fillStyle = "#000";
  context.fillText(text, x + size / 2, y + height / 2);
}
