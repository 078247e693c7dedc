"""Everything a run needs before its first step: teacher, tokenizer, text, masks, student."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax

from distilflax import losses, models, weights
from distilflax.batches.masking import MaskTable, mask_table
from distilflax.errors import UserError
from distilflax.losses import PROJECTIONS
from distilflax.settings import Encoder, Experiment
from distilflax.settings import Student as StudentSettings
from distilflax.settings import Teacher as TeacherSettings
from distilflax.text import corpus as text_corpus
from distilflax.text import tokenizer as text_tokenizer
from distilflax.text.corpus import Corpus
from distilflax.text.tokenizer import Tokenizer
from distilflax.train import cached, sharding
from distilflax.train.head import fitted_head
from distilflax.train.regression import regress, text_of_the_fit
from distilflax.train.state import INIT, purpose_key
from distilflax.weights import Checkpoint


@dataclass(frozen=True, eq=False)
class Materials:
    """What all arms of an experiment share.

    `others` are the models of `config.teachers`; `origins` those that students are cut out of in
    place of the teacher, by their path; `students` those made so far (`new_student`). `head_fitted`
    says that the teacher's masked-LM head was fitted here.
    """

    teacher: Checkpoint
    tokenizer: Tokenizer
    corpus: Corpus
    table: MaskTable
    others: dict[str, Checkpoint] = field(default_factory=dict)
    origins: dict[str, Checkpoint] = field(default_factory=dict)
    students: dict = field(default_factory=dict)
    head_fitted: bool = False

    def origin(self, student: StudentSettings) -> Checkpoint:
        """The model that this student is cut out of."""
        return self.origins.get(student.path, self.teacher)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of what the config names and does not hold: the text and the teachers."""
        named = {"text": self.corpus, "teacher": self.teacher}
        named |= {f"teacher {name}": one for name, one in self.others.items()}
        return {name: source.fingerprint for name, source in named.items()}


def prepare(
    experiment: Experiment, arms: Iterable[Experiment], say: Callable[[str], None]
) -> Materials:
    """Reads the teacher and the text; fits the teacher's head where an arm needs one.

    Raises:
      UserError: whatever is wrong with the files or the combination, in one sentence.
    """
    arms = list(arms)
    for arm in (experiment, *arms):
        training = arm.training
        sharding.make_mesh(arm.mesh, training.batch_size // training.accumulate)
    if not experiment.teacher.path:
        raise UserError(
            "config.teacher.path is empty; give an HF folder, a hub name, or package:NAME/FOLDER."
        )
    for name, one in experiment.teachers.items():
        if not one.path:
            raise UserError(
                f"config.teachers.{name}.path is empty; give an HF folder, a hub name, or "
                "package:NAME/FOLDER."
            )
    teacher = weights.load(experiment.teacher.path)
    others = {name: weights.load(one.path) for name, one in experiment.teachers.items()}
    paths = dict.fromkeys(arm.student.path for arm in (experiment, *arms) if arm.student.path)
    origins = {path: weights.load(path) for path in paths}
    for checkpoint in (teacher, *others.values(), *origins.values()):
        _check_lengths(experiment, checkpoint.encoder)
    for arm in (experiment, *arms):
        cached.check(arm)
    # Asked now, because layer maps and terms that do not fit should not wait for the text.
    for arm in (experiment, *arms):
        origin = origins.get(arm.student.path, teacher).encoder
        weights.surgery.check_cut(origin, arm.student)
        losses.check_masking(arm.losses, arm.masking)
        student = weights.surgery.student_encoder(origin, arm.student)
        teaching = _teaching(arm, student, teacher, others)
        for encoder in teaching:
            losses.check_models(arm.losses, student, encoder)
        _check_projections(arm, teaching)
        _check_heads(arm, {"teacher": teacher} | {f"teachers.{n}": o for n, o in others.items()})
    tokenizer = text_tokenizer.load_for(teacher.folder, teacher.encoder.vocab_size)
    for name, other in others.items():
        _check_words(tokenizer, f"teachers.{name}", other)
    for origin in origins.values():
        _check_words(tokenizer, "student.path", origin)
    corpus = text_corpus.prepare(experiment.data, tokenizer)
    table = mask_table(
        tokenizer.special,
        tokenizer.continuation,
        tokenizer.mask_id,
        corpus.token_counts,
        experiment.masking,
    )
    own_head = teacher.params.get("mlm_head")
    if any(any(losses.needs_head(arm.losses)) for arm in arms):
        teacher = _with_head(experiment, experiment.teacher, teacher, corpus, table, say)
        others = {
            name: _with_head(experiment, experiment.teachers[name], other, corpus, table, say)
            for name, other in others.items()
        }
    head_fitted = teacher.params.get("mlm_head", own_head) is not own_head
    return Materials(teacher, tokenizer, corpus, table, others, origins, head_fitted=head_fitted)


def new_student(experiment: Experiment, materials: Materials) -> tuple[Encoder, dict]:
    """The student before its first step: its settings and parameters.

    Where the teacher has no masked-LM head and the losses need the student to have one, the
    student gets one drawn anew. Arms that begin with the same student share the work of making it.
    """
    needs_head, _ = losses.needs_head(experiment.losses)
    begins_as = (experiment.student, experiment.seed, needs_head)
    if begins_as not in materials.students:
        materials.students[begins_as] = _make_student(experiment, materials, needs_head)
    return materials.students[begins_as]


def with_projections(
    experiment: Experiment, materials: Materials, encoder: Encoder, params: dict
) -> dict:
    """`params` of a student with the projections that its terms learn, if any: what is trained."""
    first, *_ = _teaching(experiment, encoder, materials.teacher, materials.others)
    projections = losses.init_projections(
        experiment.losses, encoder, first, purpose_key(experiment.seed, INIT)
    )
    return params | {PROJECTIONS: projections} if projections else params


def without_projections(params: dict) -> dict:
    """The student alone: what is measured and exported."""
    return {name: part for name, part in params.items() if name != PROJECTIONS}


def _make_student(
    experiment: Experiment, materials: Materials, needs_head: bool
) -> tuple[Encoder, dict]:
    origin, key = materials.origin(experiment.student), purpose_key(experiment.seed, INIT)
    student, sequences = experiment.student, materials.corpus.train
    copied = student.init != "random"
    first = weights.surgery.at_full_width(student) if copied else student
    encoder, params = weights.surgery.make_student(origin.encoder, origin.params, first, key)
    if student.init == "regressed":
        params = regress(experiment, origin, encoder, params, sequences)
    whole, encoder = encoder, weights.surgery.student_encoder(origin.encoder, student)
    if encoder != whole:
        batches = text_of_the_fit(experiment, sequences)
        params = weights.width.narrow(whole, params, encoder, batches)
    if needs_head and "mlm_head" not in params:
        drawn = jax.jit(lambda k: models.init(encoder, k, mlm_head=True)["mlm_head"])(key)
        params = params | {"mlm_head": drawn}
    # It begins as a float32 model does; only training knows what it is trained for.
    return replace(encoder, int8_range=student.int8_range), params


def _check_lengths(experiment: Experiment, encoder: Encoder) -> None:
    if experiment.data.max_length > encoder.max_positions:
        raise UserError(
            f"config.data.max_length is {experiment.data.max_length} but the teacher has "
            f"{encoder.max_positions} positions; set it to at most that."
        )


def _check_words(tokenizer: Tokenizer, name: str, other: Checkpoint) -> None:
    if text_tokenizer.load(other.folder).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"config.{name} ({other.folder}) has another tokenizer than config.teacher, so their "
            "words cannot be compared; give models of one tokenizer."
        )


def _teaching(
    arm: Experiment, student: Encoder, teacher: Checkpoint, others: Mapping[str, Checkpoint]
) -> list[Encoder]:
    """The architectures of those that teach, which a share of 0 does not; the student's own where
    its average does."""
    shares = {name: one.share for name, one in arm.teachers.items()}
    found = [teacher.encoder] if arm.teacher.share else []
    found += [other.encoder for name, other in others.items() if shares[name]]
    average = arm.teaching.average_decay and arm.teaching.average_share
    return [*found, student] if average else found


def _check_projections(arm: Experiment, teaching: Sequence[Encoder]) -> None:
    widths = {encoder.hidden_size for encoder in teaching}
    for name, term in losses.active(arm.losses).items():
        if term.projection != "none" and len(widths) > 1:
            raise UserError(
                f"config.losses.{name}.projection maps the student to one width, but its teachers "
                f"have {', '.join(map(str, sorted(widths)))}; set it to 'none' or give teachers of "
                "one width."
            )


def _check_heads(arm: Experiment, teachers: Mapping[str, Checkpoint]) -> None:
    """Whether the teachers' words can be had where terms compare them."""
    student_needs, teacher_needs = losses.needs_head(arm.losses)
    asked = {"teacher": arm.teacher} | {f"teachers.{n}": one for n, one in arm.teachers.items()}
    for name, teacher in teachers.items():
        choice = asked[name].mlm_head
        if (
            (student_needs or teacher_needs)
            and choice == "own"
            and "mlm_head" not in teacher.params
        ):
            raise UserError(
                f"{teacher.folder} has no masked-LM head but config.{name}.mlm_head is 'own'; set "
                "it to 'fit' or 'auto'."
            )
        if teacher_needs and choice == "none":
            raise UserError(
                f"config.{name}.mlm_head is 'none', but a term compares distributions over words; "
                "set it to 'fit' or 'auto', or the weights of such terms to 0."
            )


def _with_head(
    experiment: Experiment,
    asked: TeacherSettings,
    teacher: Checkpoint,
    corpus: Corpus,
    table: MaskTable,
    say: Callable[[str], None],
) -> Checkpoint:
    """The teacher with its own masked-LM head, or one fitted, as its `mlm_head` says."""
    choice, has_own = asked.mlm_head, "mlm_head" in teacher.params
    if has_own and choice in ("auto", "own"):
        return teacher
    if choice == "none":
        return replace(teacher, params={"encoder": teacher.params["encoder"]})
    together = hashlib.sha256((teacher.fingerprint + corpus.fingerprint).encode()).hexdigest()
    head = fitted_head(
        experiment,
        teacher.encoder,
        teacher.params,
        corpus.train,
        table,
        fingerprint=together,
        say=say,
    )
    return replace(teacher, params={"encoder": teacher.params["encoder"], "mlm_head": head})
