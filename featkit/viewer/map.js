"use strict";
/* The map in 3D: points, cameras, photographs in their frames; what a click hits. Drawn by three.js, only when needed.

   While the view moves, only so many points are drawn as the machine manages in time, evenly spread; all of them follow
   as soon as it rests. */

const MOVING_MS = 33;  // what a frame may take while the view moves
const FEWEST = 5000;  // points that are drawn in any case
const RESTING_MS = 200;  // after this long without a movement everything is drawn
const CAMERA_PX = 9, POINT_PX = 7;  // how far from a click things are still hit
const COLOURS = {
  camera: 0x2f7ed8, localized: 0xe8701a, uncertain: 0xd9a514, chosen: 0xe0247a, paired: 0x2a9d6f,
};
const PALE = { light: { image: 0xa9c1df, query: 0xf0c8a8 }, dark: { image: 0x4a6180, query: 0x7d5a3f } };  // not chosen
const FILL = 0.94, TOOLS_PX = 54;  // share of the width that the first view fills, and the height of the tools
const MOST_PHOTOS = 150;  // photographs that are shown in their frames without being asked for

function createMap(host, canvas, scene, xyz, rgb, thumbnail) {
  const software = /swiftshader|llvmpipe|software/i.test(rendererName());
  const renderer = new THREE.WebGLRenderer({ canvas, antialias: !software, alpha: true });
  THREE.ColorManagement.enabled = false;  // colours of points and photographs are shown as they are
  renderer.outputColorSpace = THREE.LinearSRGBColorSpace;
  renderer.setPixelRatio(Math.min(devicePixelRatio, software ? 1 : 2));
  const world = new THREE.Scene();
  const turned = new THREE.Group();  // the map's frame, turned upright
  const r = scene.turn;
  turned.matrixAutoUpdate = false;
  turned.matrix.set(r[0], r[1], r[2], 0, r[3], r[4], r[5], 0, r[6], r[7], r[8], 0, 0, 0, 0, 1);
  world.add(turned);
  const eye = new THREE.PerspectiveCamera(45, 1, scene.side * 2e-3, scene.side * 40);
  eye.up.set(0, 0, 1);
  const controls = new THREE.OrbitControls(eye, canvas);
  controls.zoomToCursor = true;
  controls.minDistance = scene.side * 4e-3;
  controls.maxDistance = scene.side * 15;

  const count = xyz.length / 3;
  const points = makePoints();
  const placed = (kind) => (image, index) => image.centre && ({
    kind, index, image, centre: new THREE.Vector3(...image.centre), colour: 0, quad: null,
  });
  const cameras = scene.images.map(placed("image"));
  const ofQuery = scene.queries.map(placed("query")), queries = ofQuery.filter(Boolean);  // those that have a pose
  let size = 1;  // factor of the frusta
  const [frusta, queryFrusta] = [0, 1].map(() => new THREE.LineSegments(
    new THREE.BufferGeometry(), new THREE.LineBasicMaterial({ vertexColors: true })));
  const isDrawn = (camera) => (camera.kind === "image" ? frusta : queryFrusta).visible;
  const rays = new THREE.LineSegments(
    new THREE.BufferGeometry(), new THREE.LineBasicMaterial({ color: COLOURS.chosen, transparent: true, opacity: 0.75 }));
  const marked = new THREE.Points(
    new THREE.BufferGeometry(), new THREE.PointsMaterial({ size: 9, sizeAttenuation: false, color: 0xff3d8b, depthTest: false }));
  for (const thing of [frusta, queryFrusta, rays, marked]) thing.frustumCulled = false;
  rays.visible = marked.visible = false;
  turned.add(points, frusta, queryFrusta, rays, marked);

  /* ---- what there is ---------------------------------------------------------------------------------------- */

  function rendererName() {
    const probe = document.createElement("canvas").getContext("webgl2");
    const info = probe?.getExtension("WEBGL_debug_renderer_info");
    const name = info ? String(probe.getParameter(info.UNMASKED_RENDERER_WEBGL)) : "";
    probe?.getExtension("WEBGL_lose_context")?.loseContext();
    return name;
  }

  function makePoints() {
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.BufferAttribute(xyz, 3));
    geometry.setAttribute("color", new THREE.BufferAttribute(rgb, 3, true));
    geometry.setIndex(new THREE.BufferAttribute(shuffled(count), 1));
    const material = new THREE.PointsMaterial({ size: 2, sizeAttenuation: false, vertexColors: true });
    const made = new THREE.Points(geometry, material);
    made.frustumCulled = false;
    return made;
  }

  function shuffled(n) {  // so that the first k are an even share; the same for every visit
    const order = Uint32Array.from({ length: n }, (_, i) => i);
    let state = 1;
    for (let i = n - 1; i > 0; i--) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const j = state % (i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  function corners(camera) {
    const { rotation: m, width, height, focal } = camera.image;
    const depth = scene.depth * size, [x, y] = [0.5 * width / focal * depth, 0.5 * height / focal * depth];
    return [[-x, -y], [x, -y], [x, y], [-x, y]].map(([a, b]) => new THREE.Vector3(
      m[0] * a + m[3] * b + m[6] * depth, m[1] * a + m[4] * b + m[7] * depth, m[2] * a + m[5] * b + m[8] * depth,
    ).add(camera.centre));
  }

  function layFrusta() {
    lay(frusta, cameras);
    lay(queryFrusta, queries);
    draw();
  }

  function lay(segments, some) {
    const lines = new Float32Array(some.length * 48), colours = new Float32Array(some.length * 48);
    let at = 0;
    for (const camera of some) {
      const four = camera.corners = corners(camera), colour = new THREE.Color(camera.colour);
      for (let k = 0; k < 4; k++) {
        for (const end of [four[k], four[(k + 1) % 4], camera.centre, four[k]]) {
          end.toArray(lines, at);
          colour.toArray(colours, at);
          at += 3;
        }
      }
      if (camera.quad) four.forEach((corner, k) => camera.quad.geometry.attributes.position.setXYZ(k, ...corner));
      if (camera.quad) camera.quad.geometry.attributes.position.needsUpdate = true;
    }
    segments.geometry.dispose();
    segments.geometry = new THREE.BufferGeometry();
    segments.geometry.setAttribute("position", new THREE.BufferAttribute(lines, 3));
    segments.geometry.setAttribute("color", new THREE.BufferAttribute(colours, 3));
  }

  let photosWanted = false, photosStarted = false;
  async function loadPhotos() {  // one after the other, so that a click is answered meanwhile
    photosStarted = true;
    for (const camera of [...cameras, ...queries]) {
      if (!camera.image.photo) continue;
      try {
        const { picture, uv } = await thumbnail(camera.kind, camera.index);
        const texture = new THREE.Texture(picture);
        texture.anisotropy = 4;
        texture.needsUpdate = true;
        const geometry = new THREE.BufferGeometry();
        geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array(camera.corners.flatMap((c) => [...c])), 3));
        geometry.setAttribute("uv", new THREE.BufferAttribute(new Float32Array(uv), 2));
        geometry.setIndex([0, 1, 2, 0, 2, 3]);
        camera.quad = new THREE.Mesh(geometry, new THREE.MeshBasicMaterial({ map: texture, side: THREE.DoubleSide }));
        camera.quad.frustumCulled = false;
        camera.quad.visible = photosWanted && isDrawn(camera);
        turned.add(camera.quad);
        draw();
      } catch (error) {
        console.warn(`${camera.image.name}: ${error.message}`);
      }
    }
  }

  function showPhotos(wanted) {
    photosWanted = wanted;
    if (wanted && !photosStarted) loadPhotos();
    for (const camera of [...cameras, ...queries]) if (camera.quad) camera.quad.visible = wanted && isDrawn(camera);
    draw();
  }

  /* ---- drawing ---------------------------------------------------------------------------------------------- */

  let pending = false, moving = false, rest = 0, last = 0, budget = Math.min(count, 40000);
  function draw() {
    if (!pending) requestAnimationFrame(frame);
    pending = true;
  }

  function frame(now) {
    pending = false;
    if (moving && last && now - last < 2000) {
      budget *= now - last > 1.5 * MOVING_MS ? 0.7 : now - last < MOVING_MS ? 1.25 : 1;
      budget = Math.round(Math.min(count, Math.max(FEWEST, budget)));
    }
    last = moving ? now : 0;
    points.geometry.setDrawRange(0, moving ? budget : count);
    renderer.render(world, eye);
    frames.total++;
    frames.points = moving ? Math.min(budget, count) : count;
  }
  const frames = { total: 0, points: 0 };

  controls.addEventListener("change", () => {
    moving = true;
    clearTimeout(rest);
    rest = setTimeout(() => { moving = false; draw(); }, RESTING_MS);
    draw();
  });

  function resize() {
    const [width, height] = [host.clientWidth, host.clientHeight];
    if (!width || !height) return;
    renderer.setSize(width, height, false);
    eye.aspect = width / height;
    eye.updateProjectionMatrix();
    draw();
  }

  function home() {  // the nearest view from behind the cameras and above that has everything in it
    const reach = 0.5 * scene.side, some = [];
    const add = (x, y, z) => {
      const p = new THREE.Vector3(x, y, z).applyMatrix4(turned.matrix);
      if (Math.max(Math.abs(p.x), Math.abs(p.y), Math.abs(p.z)) <= reach) some.push(p);
    };
    const step = Math.max(1, Math.floor(count / 4000));
    for (let i = 0; i < count; i += step) add(xyz[3 * i], xyz[3 * i + 1], xyz[3 * i + 2]);
    for (const camera of [...cameras, ...queries]) for (const corner of [camera.centre, ...camera.corners]) add(...corner);
    if (!some.length) some.push(new THREE.Vector3());
    const forward = new THREE.Vector3(0, 0.85, -0.53).normalize(), right = new THREE.Vector3(1, 0, 0);
    const up = new THREE.Vector3().crossVectors(right, forward);
    const half = Math.tan(eye.fov * Math.PI / 360), wide = half * eye.aspect * FILL;
    const tall = half * Math.max(0.5, 1 - 2 * TOOLS_PX / host.clientHeight);  // nothing behind the tools
    const target = new THREE.Vector3();
    let distance = scene.side;
    for (let turn = 0; turn < 8; turn++) {  // centre what is seen, then come as near as it allows
      let [left, far, low, high, needed] = [Infinity, -Infinity, Infinity, -Infinity, 1e-3 * scene.side];
      for (const p of some) {
        const d = p.clone().sub(target), [x, y, z] = [d.dot(right), d.dot(up), d.dot(forward)];
        const depth = Math.max(distance + z, 1e-6 * scene.side);
        [left, far] = [Math.min(left, x / depth), Math.max(far, x / depth)];
        [low, high] = [Math.min(low, y / depth), Math.max(high, y / depth)];
        needed = Math.max(needed, Math.abs(x) / wide - z, Math.abs(y) / tall - z);
      }
      if (turn === 7) { distance = needed; break; }
      target.addScaledVector(right, 0.5 * (left + far) * distance).addScaledVector(up, 0.5 * (low + high) * distance);
      distance = Math.max(distance * 0.5, needed);
    }
    controls.target.copy(target);
    eye.position.copy(target).addScaledVector(forward, -distance);
    controls.update();
    draw();
  }

  const cameraOf = (kind, index) => (kind === "image" ? cameras : ofQuery)[index];

  function lookThrough(kind, index) {
    const camera = cameraOf(kind, index), m = camera.image.rotation;
    const ahead = new THREE.Vector3(m[6], m[7], m[8]).applyMatrix4(turned.matrix);
    eye.position.copy(camera.centre).applyMatrix4(turned.matrix);
    controls.target.copy(eye.position).addScaledVector(ahead, scene.depth * 4);
    controls.update();
    draw();
  }

  /* ---- what is chosen --------------------------------------------------------------------------------------- */

  /* camera, query, point: what is chosen. paired, seenBy: cameras that rays from it lead to. */
  function choose({ camera = null, query = null, paired = [], point = null, seenBy = [] } = {}) {
    const chosen = camera !== null ? cameras[camera] : query !== null ? ofQuery[query] : null;
    const some = camera !== null || query !== null || point !== null, ends = [];
    const pale = PALE[matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"];
    for (const one of cameras) one.colour = some ? pale.image : COLOURS.camera;
    for (const one of queries) one.colour = some ? pale.query : COLOURS[one.image.state];
    for (const other of paired) cameras[other].colour = COLOURS.paired;
    for (const other of seenBy) cameras[other].colour = COLOURS.chosen;
    if (chosen) chosen.colour = COLOURS.chosen;
    const centre = point !== null ? new THREE.Vector3().fromArray(xyz, 3 * point) : chosen?.centre;
    if (centre) for (const other of point !== null ? seenBy : paired) ends.push(...centre, ...cameras[other].centre);
    rays.geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array(ends), 3));
    rays.material.color.set(point !== null ? COLOURS.chosen : COLOURS.paired);
    rays.visible = ends.length > 0;
    marked.geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array(point !== null ? [...centre] : [0, 0, 0]), 3));
    marked.visible = point !== null;
    layFrusta();
  }

  const place = new THREE.Vector3();
  function onScreen(vector) {  // px of the canvas and the depth, or null behind the eye
    place.copy(vector).applyMatrix4(turned.matrix).project(eye);
    if (place.z > 1) return null;
    return { x: (0.5 + 0.5 * place.x) * host.clientWidth, y: (0.5 - 0.5 * place.y) * host.clientHeight, depth: place.z };
  }

  function cameraAt(x, y) {
    let best = null;
    for (const camera of [...cameras, ...queries]) {
      if (!isDrawn(camera)) continue;
      const tip = onScreen(camera.centre), four = camera.corners.map(onScreen);
      if (!tip || four.includes(null)) continue;
      const hit = Math.hypot(tip.x - x, tip.y - y) < CAMERA_PX || isInside(four, x, y);
      const depth = Math.min(tip.depth, ...four.map((corner) => corner.depth));
      if (hit && (!best || depth < best.depth)) best = { kind: camera.kind, index: camera.index, depth };
    }
    return best;
  }

  function isInside(polygon, x, y) {
    let inside = false;
    for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
      const [a, b] = [polygon[i], polygon[j]];
      if ((a.y > y) !== (b.y > y) && x < ((b.x - a.x) * (y - a.y)) / (b.y - a.y) + a.x) inside = !inside;
    }
    return inside;
  }

  function pointAt(x, y) {
    if (!points.visible) return null;
    const m = new THREE.Matrix4().multiplyMatrices(eye.projectionMatrix, eye.matrixWorldInverse).multiply(turned.matrix).elements;
    const [width, height] = [host.clientWidth, host.clientHeight];
    let best = null, lowest = Infinity;
    for (let i = 0; i < count; i++) {
      const [a, b, c] = [xyz[3 * i], xyz[3 * i + 1], xyz[3 * i + 2]];
      const w = m[3] * a + m[7] * b + m[11] * c + m[15];
      if (w <= 0) continue;
      const dx = (0.5 + 0.5 * (m[0] * a + m[4] * b + m[8] * c + m[12]) / w) * width - x;
      if (dx > POINT_PX || dx < -POINT_PX) continue;
      const dy = (0.5 - 0.5 * (m[1] * a + m[5] * b + m[9] * c + m[13]) / w) * height - y;
      const distance = dx * dx + dy * dy;
      if (distance > POINT_PX * POINT_PX) continue;
      const depth = (m[2] * a + m[6] * b + m[10] * c + m[14]) / w;
      const cost = distance < 4 ? depth : distance + 10;  // of several below the pointer the one in front
      if (cost < lowest) [lowest, best] = [cost, { kind: "point", index: i, depth }];
    }
    return best;
  }

  function pick(x, y) {
    const [camera, point] = [cameraAt(x, y), pointAt(x, y)];
    return camera && point ? (point.depth < camera.depth ? point : camera) : camera ?? point;
  }

  choose();
  resize();
  home();
  new ResizeObserver(resize).observe(host);
  return {
    choose, home, lookThrough, pick, cameraAt, frames, showPhotos,
    fewPhotos: cameras.length + queries.length <= MOST_PHOTOS,
    screenOf: (kind, index) => onScreen(kind === "point" ? new THREE.Vector3().fromArray(xyz, 3 * index) : cameraOf(kind, index).centre),
    setPointSize(px) { points.material.size = px * renderer.getPixelRatio(); draw(); },
    setCameraSize(factor) { size = factor; layFrusta(); },
    showPoints(shown) { points.visible = shown; draw(); },
    showCameras(shown) { frusta.visible = shown; showPhotos(photosWanted); },
    showQueries(shown) { queryFrusta.visible = shown; showPhotos(photosWanted); },
    turnBy(angle) {  // about the vertical axis, as a drag does
      const offset = eye.position.clone().sub(controls.target), [c, s] = [Math.cos(angle), Math.sin(angle)];
      eye.position.set(c * offset.x - s * offset.y, s * offset.x + c * offset.y, offset.z).add(controls.target);
      controls.update();
    },
  };
}
