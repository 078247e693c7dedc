// Text to ids, as the tokenizer.json of an export says: tokens that were added to the vocabulary,
// BERT's normaliser, its words, WordPiece.
//
//   const words = new WordPiece(await (await fetch("model/tokenizer.json")).json());
//   words.encode("A text.", 128)  // [101, 1037, 3793, 1012, 102]

const PUNCTUATION = /[!-/:-@[-`{-~]|\p{P}/u;
const HAN =
  /[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b81f}\u{2b820}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;
const LETTER = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;

export class WordPiece {
  constructor(file) {
    const { model, normalizer, pre_tokenizer: words, post_processor, added_tokens = [] } = file;
    const kinds = [model?.type, normalizer?.type, words?.type].join();
    if (kinds !== "WordPiece,BertNormalizer,BertPreTokenizer") {
      throw new Error(`tokenizer.json is of ${kinds}; this page reads BERT's only.`);
    }
    this.vocab = new Map(Object.entries(model.vocab));
    this.unknown = this.vocab.get(model.unk_token);
    this.prefix = model.continuing_subword_prefix;
    this.longestWord = model.max_input_chars_per_word;
    this.normalizer = normalizer;
    [this.before, this.after] = around(post_processor);
    // Some are looked for in the text as it is, such as [MASK]; the others after normalising.
    this.asWritten = new Added(added_tokens.filter((token) => !token.normalized));
    this.normalized = new Added(
      added_tokens.filter((token) => token.normalized),
      (content) => this.normalize(content),
    );
  }

  // Ids with those of [CLS] and [SEP], however they are called, around them; at most `longest`.
  encode(text, longest) {
    const ids = this.asWritten.split(text, (part) =>
      this.normalized.split(this.normalize(part), (normal) =>
        this.words(normal).flatMap((word) => this.pieces(word)),
      ),
    );
    const room = longest - this.before.length - this.after.length;
    return [...this.before, ...ids.slice(0, room), ...this.after];
  }

  normalize(text) {
    const { clean_text, handle_chinese_chars, strip_accents, lowercase } = this.normalizer;
    if (clean_text) {
      text = text.replace(/(?![\t\n\r])[\p{C}\ufffd]/gu, "").replace(/\p{White_Space}/gu, " ");
    }
    if (handle_chinese_chars) text = text.replace(HAN, " $& ");
    if (strip_accents ?? lowercase) text = text.normalize("NFD").replace(/\p{Mn}/gu, "");
    // Letter by letter: as a whole, a Greek word's last sigma would become another letter.
    if (lowercase) text = [...text].map((letter) => letter.toLowerCase()).join("");
    return text;
  }

  words(text) {
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

// Tokens that are one piece wherever they stand in a text. That some take the spaces beside them
// along changes nothing here, where spaces become nothing.
class Added {
  constructor(tokens, written = (content) => content) {
    this.tokens = new Map(tokens.map((token) => [written(token.content), token]));
    this.tokens.delete("");
    // The longest first: it is the one that counts where several begin at the same letter.
    const contents = [...this.tokens.keys()].sort((a, b) => b.length - a.length);
    const escaped = contents.map((content) => content.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
    this.pattern = contents.length ? new RegExp(escaped.join("|"), "gu") : undefined;
  }

  // The ids of the tokens and, in between, those that `rest` makes of what is around them.
  split(text, rest) {
    const found = [];
    let done = 0;
    for (const match of this.pattern ? text.matchAll(this.pattern) : []) {
      const { id, single_word } = this.tokens.get(match[0]);
      const end = match.index + match[0].length;
      if (single_word && inWord(text, match.index, end)) continue;
      found.push(...rest(text.slice(done, match.index)), id);
      done = end;
    }
    return [...found, ...rest(text.slice(done))];
  }
}

// Whether a letter stands directly before or after; some take two places in a string.
const inWord = (text, start, end) =>
  LETTER.test([...text.slice(0, start).slice(-2)].at(-1) ?? "") ||
  LETTER.test([...text.slice(end, end + 2)][0] ?? "");

// The ids before and after a text.
function around(processor) {
  if (processor?.type === "BertProcessing") return [[processor.cls[1]], [processor.sep[1]]];
  if (processor?.type !== "TemplateProcessing") {
    const kind = processor?.type;
    throw new Error(`tokenizer.json has the post_processor ${kind}; this page reads BERT's only.`);
  }
  const { single, special_tokens } = processor;
  const text = single.findIndex((part) => part.Sequence);
  const ids = (parts) => parts.flatMap((part) => special_tokens[part.SpecialToken.id].ids);
  return [ids(single.slice(0, text)), ids(single.slice(text + 1))];
}
