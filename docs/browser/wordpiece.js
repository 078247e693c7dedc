// Text to ids, as the tokenizer.json of an export says: BERT's normaliser, its words, WordPiece.
//
//   const words = new WordPiece(await (await fetch("model/tokenizer.json")).json());
//   words.encode("A text.", 128)  // [101, 1037, 3793, 1012, 102]

const PUNCTUATION = /[!-/:-@[-`{-~]|\p{P}/u;
const HAN =
  /[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b81f}\u{2b820}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;

export class WordPiece {
  constructor(file) {
    const { model, normalizer, pre_tokenizer: words } = file;
    const kinds = [model?.type, normalizer?.type, words?.type].join();
    if (kinds !== "WordPiece,BertNormalizer,BertPreTokenizer") {
      throw new Error(`tokenizer.json is of ${kinds}; this page reads BERT's only.`);
    }
    this.vocab = new Map(Object.entries(model.vocab));
    this.unknown = this.vocab.get(model.unk_token);
    this.prefix = model.continuing_subword_prefix;
    this.longestWord = model.max_input_chars_per_word;
    this.normalizer = normalizer;
  }

  // Ids with [CLS] and [SEP] around them, at most `longest`.
  encode(text, longest) {
    const ids = this.words(text).flatMap((word) => this.pieces(word));
    const [first, last] = ["[CLS]", "[SEP]"].map((name) => this.vocab.get(name));
    return [first, ...ids.slice(0, longest - 2), last];
  }

  words(text) {
    const { clean_text, handle_chinese_chars, strip_accents, lowercase } = this.normalizer;
    if (clean_text) {
      text = text.replace(/(?![\t\n\r])[\p{C}\ufffd]/gu, "").replace(/\p{White_Space}/gu, " ");
    }
    if (handle_chinese_chars) text = text.replace(HAN, " $& ");
    if (strip_accents ?? lowercase) text = text.normalize("NFD").replace(/\p{Mn}/gu, "");
    // Letter by letter: as a whole, a Greek word's last sigma would become another letter.
    if (lowercase) text = [...text].map((letter) => letter.toLowerCase()).join("");
    const found = [];
    for (const run of text.split(/\s+/u)) {
      let word = "";
      for (const letter of run) {
        if (PUNCTUATION.test(letter)) {
          found.push(word, letter);
          word = "";
        } else word += letter;
      }
      found.push(word);
    }
    return found.filter((word) => word);
  }

  // The longest known beginning, then the longest known continuation, ...
  pieces(word) {
    const letters = [...word];
    if (letters.length > this.longestWord) return [this.unknown];
    const found = [];
    for (let start = 0; start < letters.length; ) {
      let end = letters.length;
      let id;
      for (; end > start; end--) {
        id = this.vocab.get((start ? this.prefix : "") + letters.slice(start, end).join(""));
        if (id !== undefined) break;
      }
      if (id === undefined) return [this.unknown];
      found.push(id);
      start = end;
    }
    return found;
  }
}
