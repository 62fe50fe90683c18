"use strict";
/* Queries that `featkit localize` located in the map: the list of them, one of them, and one beside a photograph of the
   map that it was matched with. Uses what view.js defines. */

const STATES = { localized: "localized", uncertain: "uncertain", "not localized": "failed" };  // state: its class

function queryCounts() {
  const count = (state) => scene.queries.filter((query) => query.state === state).length;
  const parts = [`${number(scene.queries.length - count("not localized"))} of ${number(scene.queries.length)} localized`];
  if (count("uncertain")) parts.push(`${number(count("uncertain"))} uncertain`);
  return parts.join(", ");
}

const badge = (state) => el("span", { className: `state ${STATES[state]}` }, state);

function queryRow(index) {
  const { name, state, why, inliers, matches } = scene.queries[index];
  return el("button", { type: "button", className: "pair", title: name, onclick: () => go(`query=${index}`), dataset: { query: index, state } },
    el("span", { className: "frame" }, thumbImage("query", index)),
    el("span", {}, el("span", { className: "name" }, name), badge(state),
      state === "localized" ? el("span", { className: "count" }, `${number(inliers)} inliers of ${number(matches)} matches`) : el("span", { className: "count" }, why)));
}

/* Its matches with points of the map in the form of an image's keypoints, of which only inliers "see" a point. */
async function matchesOf(index) {
  const buffer = await bytes(`query/${index}.bin`), count = buffer.byteLength / 13;
  const point = new Int32Array(buffer, 8 * count, count), inlier = new Uint8Array(buffer, 12 * count, count);
  const seen = point.map((of, i) => inlier[i] ? of : -1);
  return { xy: new Float32Array(buffer, 0, 2 * count), point: seen, count, inliers: inlier.reduce((a, b) => a + b, 0) };
}

const inliersCalled = (index, about) => about.limit_px === null || !scene.queries[index].centre ? "" : `within ${number(about.limit_px)} px of the pose`;

/* Rows of the photographs that a query was matched with; of one without a pose only the matches count. */
function retrievedRows(index, about, without = -1) {
  const called = inliersCalled(index, about) ? "inliers" : "matches", column = called === "inliers" ? 1 : 2;
  const most = Math.max(1, ...about.pairs.map((pair) => pair[column]));
  const rows = about.pairs.filter(([other]) => other !== without).map((pair) => pairRow(`query-pair=${index},${pair[0]}`, ...pair, most, called));
  return el("div", { className: "pairs" }, ...rows);
}

async function showQuery(index, isCurrent) {
  const about = await aboutOf("query", index), query = scene.queries[index], { name, state, why, photo } = query;
  const matches = await matchesOf(index), picture = photo ? await photoOf("query", index) : null;
  if (!isCurrent()) return;
  const called = inliersCalled(index, about);
  map.choose({ query: index, paired: called ? withInliers(about.pairs) : about.pairs.filter((pair) => pair[2]).map(([other]) => other) });
  const wanted = { seen: true, other: !called };
  const shown = photoWithDots(picture?.picture, about.size, matches, wanted);
  const known = (value, digits, unit) => value === null || value === undefined ? "–" : `${number(value, digits)}${unit}`;
  fill("query", index, el("div", { className: "buttons" }, backToAll(),
    ...query.centre ? [button("look through", () => map.lookThrough("query", index))] : [],
    button("enlarge", () => enlarge("query", index, matches, wanted))),
    el("h1", {}, name), el("p", { className: "why" }, badge(state), why ? ` ${why}` : ""), shown.holder,
    el("div", { className: "buttons" }, ...called ? [shown.toggle("seen", called, matches.inliers)] : [],
      shown.toggle("other", called ? "other matches" : "matches with points", matches.count - matches.inliers)),
    ...about.problem ? [el("div", { className: "missing" }, about.problem)] : [],
    facts([["inliers", `${number(about.inliers)} of ${number(about.matches_3d)} matches with points`], ["keypoints", number(about.keypoints)],
      ...query.centre ? [["residual", known(about.residual_px, 2, " px")], ["± centre", known(about.centre_std, 4, "")],
        ["± rotation", known(about.rotation_std_deg, 3, "°")]] : [],
      ...about.camera ? [["camera", `${about.camera}, ${about.camera_size.join(" × ")} px, from ${SOURCES[about.intrinsics_source] ?? about.intrinsics_source}`],
        ["parameters", about.params.map((p) => number(p, 3)).join(", ")]] : []]),
    el("h2", {}, `Matched with ${about.pairs.length} retrieved photographs`),
    retrievedRows(index, about));
  shown.paint();
}

const SOURCES = { list: "the given list", params: "the given parameters", map: "the map", exif: "EXIF", guess: "a guess" };

async function showQueryPair(index, other, isCurrent) {
  const about = await aboutOf("query", index), lines = await linesOf(`query-pair/${index}-${other}.bin`);
  const photos = await Promise.all([photoOf("query", index), photoOf("image", other)]);
  if (!isCurrent()) return;
  map.choose({ query: index, paired: [other] });
  const called = inliersCalled(index, about);
  const names = [scene.queries[index].name, scene.images[other].name];
  fill("query-pair", `${index},${other}`, el("div", { className: "buttons" }, button(`← ${names[0]}`, () => go(`query=${index}`)),
    button(`${names[1]} →`, () => go(`image=${other}`))),
    el("h1", {}, `Query ${names[0]} and ${names[1]}`), called ? factsOfLines(lines) : facts([["matches", number(lines.length)]]),
    el("div", { className: "grid" }, thumb("query", index), thumb("image", other)),
    el("h2", {}, `Other photographs matched with ${names[0]}`),
    retrievedRows(index, about, other));
  openLines(names, photos, lines, called);
}
