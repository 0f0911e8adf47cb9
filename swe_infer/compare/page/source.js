// Where the data come from: elements of this file, or the server of this page.

import { byId } from './dom.js';

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? null;

/** Unpacks an element: base64 of zlib of JSON. */
async function unpacked(id) {
  const packed = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  return JSON.parse(await new Response(stream).text());
}

/** The data of a self-contained file. */
class EmbeddedSource {
  #chunks = [];
  #last = { chunk: -1, content: null };

  async figuresAndIndex() {
    const index = await unpacked('index');
    this.#chunks = index.chunks;
    return { figures: JSON.parse(byId('figures').textContent), index };
  }

  /** An instance's details, with prompt and turns if the file has them. */
  async instance(number) {
    const chunk = this.#chunks.findLastIndex((start) => start <= number);
    if (this.#last.chunk !== chunk) this.#last = { chunk, content: await unpacked(`chunk-${chunk}`) };
    const details = this.#last.content[number - this.#chunks[chunk]];
    return byId(`full-${number}`) ? { ...details, ...(await unpacked(`full-${number}`)) } : details;
  }

  watch() {}
}

/** The server's own words about a request that it refused. */
export class ServerError extends Error {}

/** The data of a server, which are requested again while runs go on. */
class ServedSource {
  #url;
  #refresh;
  #text = null;

  constructor(url, refresh) {
    this.#url = url;
    this.#refresh = refresh;
  }

  #address(name, query = '') {
    const search = window.location.search.slice(1);
    const all = [search, query].filter(Boolean).join('&');
    return `${this.#url}${name}${all && '?'}${all}`;
  }

  async #get(name, query) {
    const response = await fetch(this.#address(name, query), { cache: 'no-cache', credentials: 'same-origin' });
    if (!response.ok) throw new ServerError((await response.text()).trim().slice(0, 500) || `${response.status} ${response.statusText}`);
    return response.text();
  }

  async figuresAndIndex() {
    this.#text = await this.#get('comparison.json');
    return JSON.parse(this.#text);
  }

  async instance(number, name) {
    return JSON.parse(await this.#get('instance.json', `id=${encodeURIComponent(name)}`));
  }

  /** Calls `redraw` with new data, and `report` with the state of the connection. */
  watch(redraw, report) {
    let running = false;
    const ask = async () => {
      if (running) return;
      running = true;
      try {
        const text = await this.#get('comparison.json');
        report(null);
        if (text !== this.#text) {
          await redraw(JSON.parse(text));
          this.#text = text;
        }
      } catch (error) {
        report(error);
      } finally {
        running = false;
      }
    };
    document.addEventListener('swe-infer:refresh', ask);
    if (!this.#refresh) return;
    window.setInterval(() => document.visibilityState === 'visible' && ask(), 1000 * this.#refresh);
    document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && ask());
  }
}

export const homeAddress = meta('home');
export const source = meta('data-source') === null
  ? new EmbeddedSource()
  : new ServedSource(meta('data-source'), Number(meta('data-refresh') ?? 0));
