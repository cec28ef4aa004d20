// Data inside the page: gzipped, in base64, in inert elements; unpacked when it is first asked for, and kept.
// The scripts come before the data, so that what is there can be used while the browser still reads the rest of the file.

const unpacked = new Map();
const chunkNames = new Set(JSON.parse(document.getElementById("chunk-names").textContent));

/** The text of a chunk, once the browser has read all of it. */
async function chunkElement(name) {
  for (;;) {
    const element = document.getElementById(`chunk-${name}`);
    if (element && (element.nextElementSibling || document.readyState !== "loading")) return element;
    if (!element && document.readyState !== "loading") throw new Error(`the page has no chunk ${name}`);
    await new Promise((resolve) => setTimeout(resolve, 15));
  }
}

/** The bytes of a chunk, as an ArrayBuffer. */
async function unpack(name) {
  const element = await chunkElement(name);
  const text = atob(element.textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function once(key, make) {
  if (!unpacked.has(key)) unpacked.set(key, make());
  return unpacked.get(key);
}

function hasChunk(name) {
  return chunkNames.has(name);
}

function chunkText(name) {
  return unpack(name).then((buffer) => new TextDecoder().decode(buffer));
}

function chunkJson(name) {
  return once(`json ${name}`, () => chunkText(name).then(JSON.parse));
}

/** The arrays of a chunk by name: typed arrays with a `shape`. */
function chunkArrays(name) {
  return once(`arrays ${name}`, () => unpack(name).then(readSafetensors));
}

const ARRAY_TYPES = { U8: Uint8Array, U16: Uint16Array, U32: Uint32Array, F32: Float32Array };

/** The safetensors format: the header's length in 8 bytes, the header in JSON, the arrays end to end. */
function readSafetensors(buffer) {
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  const arrays = {};
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    // A copy, for a typed array may only begin at a multiple of its own size.
    arrays[name] = new ARRAY_TYPES[dtype](buffer.slice(start + begin, start + end));
    arrays[name].shape = shape;
  }
  return arrays;
}

/** Row i of a two-dimensional array, without copying. */
function row(array, i) {
  const width = array.shape.slice(1).reduce((a, b) => a * b, 1);
  return array.subarray(i * width, (i + 1) * width);
}
