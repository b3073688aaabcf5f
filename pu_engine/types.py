"""What the stages exchange: frozen, with a JSON form; arrays are files named by digest.

Every stage reads its `...Inputs` and returns its result. A `Folder` names another stage's finished
output; `results.load` reads the result in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pu_engine.jsonform import MEASURED
from pu_engine.picking.pick_types import PickEstimate, PoorClass, ReliabilityBin
from pu_engine.planning.plan_types import PlanEstimates
from pu_engine.teacher.fact_types import Latency, TapCandidate, TeacherFacts
from pu_engine.training.distill_types import DistillationOptions, DistillLoss
from pu_engine.twin.report import TwinReport
from pu_engine.variants.export_types import Companion, NotMade

SPREAD_SUFFIX = "_spread"  # of the name of a tap's second output


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file with its sha256."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A finished stage's output, or a pool; `sha256` is that of its reproducible content."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFile:
    """One labelled image as a file."""

    label: str
    image: File


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """The user's labelled images: one plain tar of `<label>/<name>` members, or files."""

    tar: File | None = None
    files: tuple[LabelledFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedPreprocessing:
    """What the user says of the teacher's input; None is found out."""

    layout: str | None = None
    channels: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    height: int | None = None
    width: int | None = None
    fit: str | None = None  # stretch | crop


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Model input = (pixel * scale - mean) / std, pixel 0 to 255, channels in the order given."""

    layout: str  # NCHW | NHWC | flat
    channels: str  # RGB | BGR | GRAY
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str  # float32 | float64 | float16 | uint8 | int8
    height: int
    width: int
    fit: str = "stretch"  # to height x width; or "crop": the centre, 7/8 of the shorter side


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A named intermediate tensor of the teacher, pooled to [N, width] inside the graph."""

    name: str
    source: str
    width: int
    spread: str = ""  # the output with the standard deviation over what was pooled, [N, width]; "" of a vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One preprocessing that was tried, with what the labelled images said of it."""

    name: str  # of the published convention
    preprocessing: Preprocessing
    nll: float
    accuracy: float
    accuracy_low: float  # Wilson's interval of 95 %
    accuracy_high: float
    agreement: float  # of its predictions with those of the first
    tied: bool = False  # the images can't tell it from the first


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeInputs:
    teacher: File
    images: LabelledImages
    external_data: Mapping[str, File] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()  # names of tensors; empty: chosen from the graph
    preprocessing: StatedPreprocessing = field(default_factory=StatedPreprocessing)
    display_name: str = "teacher.onnx"
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A teacher whose conventions were tested.

    Files: `canonical.onnx` (one image input, one logits output [N, K] float32, named `input` and
    `logits`), `tapped.onnx` (the same with one output for each tap), `labelled.json` (the split),
    `probed.json` and `probed.logits.npy` (what it said of the images that its conventions were tested on),
    `twin.json` and `twin.safetensors` (the tapped graph in torch, where it has that form).
    """

    preprocessing: Preprocessing
    output: str  # of the file as it came: logits | probabilities | log_probabilities
    batch: int | None  # None: dynamic
    classes: int
    class_order: Mapping[str, int]  # label -> output index
    class_names: tuple[str, ...]  # output index -> label, or the index as text
    taps: tuple[Tap, ...]
    taps_stated: bool = False  # by the user
    tap_candidates: tuple[TapCandidate, ...] = ()
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    images: int
    hypotheses: tuple[Hypothesis, ...]
    parameters: int
    macs: int
    opset: int
    producer: str
    facts: TeacherFacts
    teacher_sha256: str
    teacher_bytes: int
    display_name: str
    scalar_inputs: Mapping[str, float] = field(default_factory=dict)  # beside the image, and what they were set to
    warnings: tuple[str, ...] = ()
    twin: TwinReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledEntry:
    """One row of `labelled.json`, in the reading order of the source."""

    key: str
    label: str
    index: int  # the teacher's output index
    held_out: bool
    sha256: str  # of the image's bytes: the pool may hold the same image


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionOptions:
    score: str = "auto"  # one of pool_order.SCORES
    rule: str = "balanced"  # balanced | top | threshold
    count: int | None = None  # None: grows with the training budget
    threshold: float | None = None  # quantile of the score, for the threshold rule
    prior: float | None = None  # None: estimated
    # Fewest and most picks of a class by its name, for the balanced rule; `*` is every labelled class not named.
    class_floors: Mapping[str, int] = field(default_factory=dict)
    class_caps: Mapping[str, int] = field(default_factory=dict)
    keep_look_alikes: bool = False  # else one of each group is picked at most
    excluded: File | None = None  # a tar of images that must not be picked, such as the user's own test images


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionInputs:
    intake: Folder
    scoring: Folder
    pool: Folder
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    budget: Folder | None = None  # None: `steps` says it
    steps: int = 1500  # of the training to come: the default count grows with it
    batch_size: int = 128
    labelled_share: float = 0.25
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """`selection.parquet`: key, score, class, probability, weight, picked, why; rows in pool order. Where the source
    classifier ordered the pool also `labelled.scores.npy`: what it says of the labelled images, [P] float64.
    """

    pool_images: int
    picked: int
    score: str  # the score that ordered the pool
    why: str
    prior: float | None
    prior_given: bool
    threshold: float  # the lowest picked score
    class_counts: tuple[int, ...]  # picked images for each output index
    class_available: tuple[int, ...]
    # The source test, where the PU side was asked: the prior's upper bound, and how often a labelled image ranks above
    # a pool image.
    prior_bound: float | None = None
    separated: float | None = None
    # Of the estimated prior, and what it makes of the picks where the source classifier ordered the pool.
    prior_low: float | None = None
    prior_high: float | None = None
    expected: PickEstimate | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    poor_classes: tuple[PoorClass, ...] = ()  # the poorest first
    look_alikes: int = 0  # left out beside a better image that they look like
    excluded: int = 0  # are, or look like, images that must not be picked
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheringInputs:
    intake: Folder
    scoring: Folder
    selection: Folder
    pool: Folder
    images: LabelledImages
    size: int | None = None  # training side in pixels; None: the teacher's
    targets: str = "auto"  # views: a bank of crops and mirrors, each scored by the teacher
    views: int = 8
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Frozen arrays. C is 1 for a gray teacher, else 3 (RGB); S is `size`.

    Files: `<part>.images.npy` [n, S, S, C] uint8 and `<part>.targets.npy` [n, 2, K] float32 (teacher's logits of image
    and mirror) for the parts `labelled`, `picked`, `held_out`, `parity`; `<part>.labels.npy` [n] int64 for `labelled`
    and `held_out`; `picked.weights.npy` [n] float32 (how often each is drawn) and `picked.keys.json`. With a bank of
    views also `<part>.bank.images.npy` [n, V, S, S, C] and `<part>.bank.targets.npy` [n, V, K] for `labelled` and
    `picked`. `parity` are unpicked pool images (picked ones where none is left).
    """

    size: int
    fit: str  # of the teacher's preprocessing
    channels: int
    classes: int
    labelled: int
    picked: int
    held_out: int
    parity: int
    parity_unpicked: int  # of the parity images; the others were trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentOptions:
    name: str | None = None  # None: cifar_resnet20 up to 64 pixels, mobilenetv4_conv_small above
    size: int | None = None  # None: the teacher's
    max_parameters: int | None = None
    max_macs: int | None = None
    max_latency_ms: float | None = None
    max_bytes: int | None = None  # of the fp32 weights
    weights: File | None = None  # safetensors to start from


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetInputs:
    """How many steps the training gets: named, by effort, or as many as fit into minutes."""

    intake: Folder
    student: StudentOptions = field(default_factory=StudentOptions)
    distillation: DistillationOptions = field(default_factory=DistillationOptions)
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    steps: int
    why: str = field(metadata=MEASURED)
    step_seconds: float | None = field(default=None, metadata=MEASURED)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationInputs:
    intake: Folder
    gathering: Folder
    budget: Folder | None = None  # None: the options name the steps
    scoring: Folder | None = None  # read where the loss has hints
    selection: Folder | None = None  # the same
    student: StudentOptions = field(default_factory=StudentOptions)
    distillation: DistillationOptions = field(default_factory=DistillationOptions)
    seed: int = 0
    threads: int = 1
    processes: int = 0  # that train together; 0: one a visible GPU, on a CPU one


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """All that is needed to build the network again: `student.json` beside `student.safetensors`."""

    name: str
    size: int
    channels: int
    classes: int
    parameters: int
    macs: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """Files: `student.safetensors`, `student.json` (StudentSpec), `curve.jsonl` (one row a log step),
    `events.tfevents` (the same for TensorBoard), `differences.json` (where it answers unlike the teacher).
    """

    spec: StudentSpec
    steps: int
    final_loss: float
    held_out_accuracy: float
    held_out_agreement: float
    target_scale: float = 1.0  # what the teacher's logits were multiplied by
    targets: str = ""  # cached | views | live, and why
    budget: str = field(default="", metadata=MEASURED)  # where the number of steps comes from
    images_per_second: float = field(default=0.0, metadata=MEASURED)
    candidates: tuple[Mapping[str, str], ...] = field(default=(), metadata=MEASURED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    targets: tuple[str, ...] = ("cpu", "rtx")
    max_batch: int = 64
    variants: tuple[str, ...] = ()  # fp32 | fp16 | int8-cpu | int8-trt; empty: those that the targets use
    include_preprocessing: bool = False  # uint8 [N, H, W, C] in, prepared inside the graph
    softmax: bool = False  # probabilities out
    fixed_batch: int | None = None  # None: free
    accuracy_budget: float = 0.006  # share of right answers that int8 may lose
    parity_images: str = "pool"  # pool | generated | own: those that a bundle carries
    quantisation_training_steps: int | None = None  # None: at most 200, 0: none
    runtimes: tuple[str, ...] = ()  # further ones to convert for: openvino | executorch | a user's own


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInputs:
    distillation: Folder
    gathering: Folder
    export: ExportOptions = field(default_factory=ExportOptions)
    loss: DistillLoss = field(default_factory=DistillLoss)  # these four of the distillation, for training int8
    labelled_share: float = 0.25
    batch_size: int = 128
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """An exported file."""

    name: str  # fp32 | fp16 | int8-cpu | int8-trt | openvino-int8 ...; of engines rtx-sm86-sm89-sm120
    path: str
    target: str
    format: str  # onnx | tensorrt_rtx | the name of a further runtime
    precision: str
    size: int = field(metadata=MEASURED)  # with all that is beside it
    sha256: str = field(metadata=MEASURED)
    seconds: float = field(metadata=MEASURED)
    reproducible: bool
    details: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[Companion, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    variants: tuple[Variant, ...]
    targets: tuple[str, ...] = ("cpu",)  # that were asked for
    warnings: tuple[str, ...] = ()
    not_made: tuple[NotMade, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationInputs:
    intake: Folder
    gathering: Folder
    distillation: Folder
    export: Folder
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One hop of the chain, measured on the same images on both sides."""

    hop: str  # for instance "torch -> fp32"
    images: int
    agreement: float  # share of equal argmax
    kl: float  # mean KL(before || after), nats
    max_error: float  # largest difference, relative to the largest logit
    accuracy_before: float | None  # on the held-out labelled images
    accuracy_after: float | None
    gate: str  # the bound, in words; empty where there is none
    passed: bool
    withheld: str = ""  # the variant that this verdict withholds
    worst_images: tuple[str, ...] = ()  # of a missed gate, the largest difference first: "parity[17]"
    worst_node: str = ""  # of a missed gate: where the intermediate tensors part


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The file to take for a target, and why."""

    target: str
    variant: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    verdicts: tuple[Verdict, ...]
    latencies: tuple[Latency, ...] = field(metadata=MEASURED)
    recommended: str = field(metadata=MEASURED)  # the variant's name
    teacher_accuracy: float
    student_accuracy: float
    student_accuracy_low: float
    student_accuracy_high: float
    held_out: int
    student_agreement: float
    recommendations: tuple[Recommendation, ...] = field(default=(), metadata=MEASURED)  # one a target
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInputs:
    intake: Folder
    scoring: Folder
    selection: Folder
    gathering: Folder
    distillation: Folder
    export: Folder
    verification: Folder
    bundling: Folder
    pool: Folder
    images: LabelledImages
    plan: PlanEstimates | None = None  # where the job was made from one
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every artifact of the job, ready to hand out: report.json, report.html, files beside them."""

    artifacts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """Estimate a compression from small measured samples of its stages."""

    intake: Folder
    pool: Folder
    images: LabelledImages
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    student: StudentOptions = field(default_factory=StudentOptions)
    distillation: DistillationOptions = field(default_factory=DistillationOptions)
    seed: int = 0
    threads: int = 1
