// What the logits of a text say, as the manifest's `model` has it: a number, labels, or a label.
//
//   answer({ problem: "single", labels: ["bad", "good"] }, [-1.2, 0.7])  // "good"

export function answer({ problem, labels, activation, out_of_scope, threshold = 0 }, logits) {
  // Older manifests leave the problem open; then one output is a number, as in transformers.
  problem ??= labels.length === 1 ? "regression" : "single";
  if (problem === "regression") {
    return (activation === "sigmoid" ? 1 / (1 + Math.exp(-logits[0])) : logits[0]).toFixed(4);
  }
  // A logit above 0 is a probability above a half, and each label is decided alone.
  if (problem === "multi") return labels.filter((_, i) => logits[i] > 0).join(", ") || "(none)";
  const best = logits.indexOf(Math.max(...logits));
  if (out_of_scope && probability(logits, best) < threshold) return out_of_scope;
  return labels[best];
}

const probability = (logits, i) =>
  1 / logits.reduce((sum, logit) => sum + Math.exp(logit - logits[i]), 0);
