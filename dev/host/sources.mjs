// Mounts the packed Python sources: a USTAR archive, read without a library because a dozen
// lines are enough and unpacking through Python's own `tarfile` would cost half a second.

const BLOCK = 512;
const DIGEST_CHARACTERS = 16;
const decoder = new TextDecoder();

/** Yields `[path, bytes]` for every regular file of a USTAR archive. */
function* files(archive) {
  const text = (at, length) => {
    const field = archive.subarray(at, at + length);
    const end = field.indexOf(0);
    return decoder.decode(end < 0 ? field : field.subarray(0, end));
  };
  for (let at = 0; at + BLOCK <= archive.length && archive[at] !== 0; ) {
    const prefix = text(at + 345, 155);
    const size = parseInt(text(at + 124, 12), 8);
    const path = (prefix ? `${prefix}/` : "") + text(at, 100);
    yield [path, archive.subarray(at + BLOCK, at + BLOCK + size)];
    at += BLOCK + Math.ceil(size / BLOCK) * BLOCK;
  }
}

/** The digest behind the archive's last block: which sources these are. */
export function digestOf(archive) {
  return decoder.decode(archive.slice(-DIGEST_CHARACTERS));
}

/** Writes the archive's files below `root`, read-only as they are on Cloudflare. */
export function mount(FS, archive, root) {
  const folders = new Set();
  for (const [path, bytes] of files(new Uint8Array(archive))) {
    const target = `${root}/${path}`;
    const folder = target.slice(0, target.lastIndexOf("/"));
    if (!folders.has(folder)) FS.mkdirTree(folder);
    folders.add(folder);
    FS.writeFile(target, bytes);
    FS.chmod(target, 0o444);
  }
  for (const folder of folders) FS.chmod(folder, 0o555);
}
