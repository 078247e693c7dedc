"""Makes the golden folders: two tiny models as transformers writes them, and what they compute.

    python tests/golden/make_golden.py

Needs torch and transformers; made with torch 2.13 and transformers 5.23. With the files in the
repository, parity is checked where neither is installed.

    bert/         3 layers x 16, token types, pooler, masked-LM and next-sentence heads
    distilbert/   3 layers x 16, masked-LM head
    bert.npz, distilbert.npz
                  input_ids, attention_mask [3, 10], token_type_ids (bert), hidden_states
                  [4, 3, 10, 16], attentions [3, 3, 4, 10, 10], logits [3, 10, 64], pooled [3, 16]
                  (bert), and hidden_states_without_types (bert)

Row 0 is full and rows 1 and 2 are padded. Values at padding mean nothing.
"""

import string
from pathlib import Path

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertTokenizer,
)

HERE = Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "model", "teacher", "student", "small", "reads", "."]
LETTERS = list(string.ascii_lowercase)
VOCABULARY = SPECIAL + WORDS + LETTERS + [f"##{letter}" for letter in LETTERS]


def main():
    shape = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 24}
    bert = BertForPreTraining(
        BertConfig(
            **shape,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=32,
            attn_implementation="eager",
        )
    )
    distilbert = DistilBertForMaskedLM(
        DistilBertConfig(
            **shape, dim=16, n_layers=3, n_heads=4, hidden_dim=32, attn_implementation="eager"
        )
    )
    generator = torch.Generator().manual_seed(0)
    input_ids, attention_mask, token_type_ids = inputs(generator)
    for name, model, tokenizer in (
        ("bert", bert, BertTokenizer),
        ("distilbert", distilbert, DistilBertTokenizer),
    ):
        randomise(model, generator)
        model.eval().save_pretrained(HERE / name)
        write_tokenizer(HERE / name, tokenizer)
        types = {"token_type_ids": token_type_ids} if name == "bert" else {}
        with torch.no_grad():
            asked = {"output_hidden_states": True, "output_attentions": True}
            out = model(input_ids, attention_mask, **types, **asked)
            arrays = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                **types,
                "hidden_states": torch.stack(out.hidden_states),
                "attentions": torch.stack(out.attentions),
                "logits": out.prediction_logits if name == "bert" else out.logits,
            }
            if name == "bert":
                arrays["pooled"] = model.bert(input_ids, attention_mask, **types).pooler_output
                plain = model.bert(input_ids, attention_mask, output_hidden_states=True)
                arrays["hidden_states_without_types"] = torch.stack(plain.hidden_states)
        np.savez_compressed(HERE / f"{name}.npz", **{k: v.numpy() for k, v in arrays.items()})


def randomise(model, generator):
    """Values far from an initialisation's, biases and LayerNorms too: a swapped or transposed
    tensor must show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)


def inputs(generator):
    lengths = torch.tensor([10, 7, 4])
    input_ids = torch.randint(len(SPECIAL), len(VOCABULARY), (3, 10), generator=generator)
    attention_mask = (torch.arange(10) < lengths[:, None]).long()
    input_ids[:, 0] = VOCABULARY.index("[CLS]")
    input_ids[torch.arange(3), lengths - 1] = VOCABULARY.index("[SEP]")
    token_type_ids = (torch.arange(10) >= lengths[:, None] // 2).long() * attention_mask
    return input_ids * attention_mask, attention_mask, token_type_ids


def write_tokenizer(folder, kind):
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    kind(vocab={word: i for i, word in enumerate(VOCABULARY)}, model_max_length=24).save_pretrained(
        folder
    )


if __name__ == "__main__":
    main()
