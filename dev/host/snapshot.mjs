// A memory without its pages of zeros. On file: the length of the memory, how many pages are kept and which ones,
// as 32-bit numbers; then the pages.

const PAGE = 4096;
const NUMBER = 4;

/** Leaves the pages of zeros out of `memory`, a Uint8Array. */
export function pack(memory) {
  const pages = Array.from({ length: Math.ceil(memory.length / PAGE) }, (_, place) =>
    memory.subarray(place * PAGE, (place + 1) * PAGE),
  );
  const kept = [...pages.keys()].filter((place) => pages[place].some((byte) => byte !== 0));
  const head = new Uint32Array([memory.length, kept.length, ...kept]);
  const packed = new Uint8Array(head.byteLength + kept.length * PAGE);
  packed.set(new Uint8Array(head.buffer));
  kept.forEach((place, position) => packed.set(pages[place], head.byteLength + position * PAGE));
  return packed;
}

/** Puts the pages of zeros back into `packed`, an ArrayBuffer. */
export function unpack(packed) {
  const [length, count] = new Uint32Array(packed, 0, 2);
  const kept = new Uint32Array(packed, 2 * NUMBER, count);
  const memory = new Uint8Array(length);
  kept.forEach((place, position) => {
    const page = new Uint8Array(packed, (2 + count) * NUMBER + position * PAGE, PAGE);
    memory.set(page.subarray(0, length - place * PAGE), place * PAGE);
  });
  return memory;
}
