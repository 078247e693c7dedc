"""What a config may say of a teacher that is run once."""

from dataclasses import dataclass

from distilflax.bounds import choice, number


@dataclass(frozen=True)
class TeacherCache:
    """Whether the teacher's outputs are kept on disk, and as what (`train/cached.py`).

    `enabled`: before its first step a run computes what is not there yet; its steps, and those of
    every other arm with the same text, order and masks, then need no teacher's encoder.
    `folder`: where; empty is a folder of its own for each teacher, text, masking and seed under
    `config.data.cache`. One that is named is refused if another teacher, text or masking made it.

    `words`: what terms on logits are given. `sampled` and `systematic` are words drawn from the
    teacher's distribution, without bias, and `top_k` its likeliest words with one bucket for the
    rest (`losses/words.py`); `states` computes the whole distribution anew from the last hidden
    state, exactly, for one product with the vocabulary. `number` of words at a position: 0 stands
    for as many as 64 bytes hold, which is 30 that were drawn and 15 likeliest of a vocabulary of up
    to 65,536, half as many drawn of a larger one.
    `dtype` of hidden states on disk.
    """

    enabled: bool = False
    folder: str = ""
    words: str = choice("sampled", "sampled", "systematic", "top_k", "states")
    number: int = number(0, 0, 255)
    dtype: str = choice("float16", "float16", "float32")
