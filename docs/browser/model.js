// An exported ONNX folder in the browser: its tokenizer, its manifest, and ONNX Runtime's session.

import * as ort from "onnxruntime-web";
import { WordPiece } from "./wordpiece.js";

const LONGEST = 256; // tokens; longer texts are cut

export async function open(folder) {
  const [manifest, tokenizer] = await Promise.all(
    ["manifest.json", "tokenizer.json"].map((name) => fetched(folder + name)),
  );
  // Where the .wasm files lie; from a CDN in production.
  ort.env.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", import.meta.url).href;
  // More threads need the headers Cross-Origin-Opener-Policy and -Embedder-Policy of the server.
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? 0 : 1;
  const session = await ort.InferenceSession.create(folder + "model.onnx");
  return { manifest, words: new WordPiece(tokenizer), session };
}

// {name: {dims, data}} of one text.
export async function run({ manifest, words, session }, text) {
  const about = manifest.model;
  const most = Math.min(LONGEST, about.max_seq_length ?? LONGEST, about.max_positions);
  const prompt = about.prompts?.[about.default_prompt] ?? "";
  const ids = words.encode(prompt + text, most);
  const columns = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: ids.map(() => 0) };
  const given = {};
  for (const name of session.inputNames) {
    given[name] = new ort.Tensor("int64", BigInt64Array.from(columns[name], BigInt), [1, ids.length]);
  }
  return session.run(given);
}

async function fetched(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status}; is the export there?`);
  return response.json();
}
