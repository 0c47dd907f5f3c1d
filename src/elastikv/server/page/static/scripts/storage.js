// Conversations on this browser's disk: one record each, in IndexedDB, which has room where localStorage has 5 MiB.

const STORE = "conversations";
let opening = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("elastikv", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds an older version of this page open"));
  });
  return opening;
}

/** One transaction; resolves when it is on disk, rejects with what the browser says (QuotaExceededError). */
async function transact(mode, act) {
  const transaction = (await open()).transaction(STORE, mode);
  const request = act(transaction.objectStore(STORE));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser has given up"));
  });
}

export const readAll = () => transact("readonly", (store) => store.getAll());
export const read = (id) => transact("readonly", (store) => store.get(id));
export const write = (record) => transact("readwrite", (store) => store.put(record));
export const erase = (id) => transact("readwrite", (store) => store.delete(id));
