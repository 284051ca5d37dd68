// The token, requests with it, and pictures, which are shown as blobs, for an <img> sends no token.

const KEY = "mosaic-edge-token";
export const $ = (id) => document.getElementById(id);

export function takeTokenOfAddress() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(KEY, decodeURIComponent(found[1]));
  history.replaceState(null, "", location.pathname);
}

let asked = null;
function askForToken() {
  asked ??= new Promise((given) => {
    $("token-dialog").showModal();
    $("token-form").onsubmit = () => {
      sessionStorage.setItem(KEY, $("token").value.trim());
      $("token").value = "";
      asked = null;
      given();
    };
  });
  return asked;
}

export async function request(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    if (token) {
      const response = await fetch(path, { ...options, headers: { Authorization: `Bearer ${token}`, ...options.headers } });
      if (response.ok) return response;
      if (response.status !== 401) {
        const told = await response.json().catch(() => null);
        const error = new Error(told?.error?.message ?? `the server answered ${response.status}`);
        error.status = response.status;
        throw error;
      }
    }
    await askForToken();
  }
}

export const json = async (path, options) => (await request(path, options)).json();
export const post = (path, body, more) => request(path, { method: "POST", body: JSON.stringify(body), ...more });

async function picture(id, at) {
  const path = `/v1/sessions/${id}/picture${at === undefined ? "" : `?at=${at}`}`;
  return URL.createObjectURL(await (await request(path)).blob());
}

export async function show(image, id, at) {
  try {
    const url = await picture(id, at);
    if (image.src) URL.revokeObjectURL(image.src);
    image.src = url;
    image.hidden = false;
  } catch {
    image.hidden = true;
  }
}
