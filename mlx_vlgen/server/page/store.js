// Conversations in the browser's database, pictures and sounds included. Where there is none (a private window), they last as long
// as the page.
//
// A conversation: {id, title, changed, messages}
// A question:     {role: "user", text, pictures: [{blob, name, width, height}], sounds: [{blob, name}] or, before there
//                 were any, undefined}
// An answer:      {role: "assistant", text, thinking, model, form, state, error, figures, marks}
//                 state: "running", "done", "stopped", "length", "failed"

const opened = new Promise((resolve) => {
  try {
    const request = indexedDB.open("mlx_vlgen", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id", autoIncrement: true });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);
  } catch {
    resolve(null);
  }
});

async function run(mode, action) {
  const database = await opened;
  if (!database) return undefined;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("conversations", mode);
    const request = action(transaction.objectStore("conversations"));
    transaction.commit(); // at once: a page that is being left takes no more events
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error); // the disk is full, most likely
  });
}

/** All conversations, the one that changed last first. */
export async function readAll() {
  const found = (await run("readonly", (store) => store.getAll())) ?? [];
  return found.sort((one, other) => other.changed - one.changed);
}

/** The first time it gets its id. */
export async function save(conversation) {
  const id = await run("readwrite", (store) => store.put(conversation));
  if (id !== undefined) conversation.id = id;
}

export async function remove(conversation) {
  if (conversation.id !== undefined) await run("readwrite", (store) => store.delete(conversation.id));
}
