"""The Arrow schemas of the data that all stages exchange.

Annotation batches hold one row per row of the official file, in the same order. A row that the reader cannot use has
a reason in `reject` and null fields, so that every row is accounted for from the first step.
"""

import string

import pyarrow as pa

IMAGE_TOKEN = "<image>"  # marks the position of an image in a text
LETTERS = string.ascii_uppercase  # name the options of a multiple-choice question
# The field of an annotation that asks, by task. A caption and a conversation have none.
ASKING_FIELD = {"open_question": "question", "multiple_choice": "question", "referring": "phrase"}

# Every annotation row: its index in the official file, its image reference (see pipelines/images/table.py; null: text
# only), and, if the reader could not use it, the reason (`reject`: a short stable name; `detail`: a human-readable
# text).
_COMMON = [
    pa.field("row", pa.int64(), nullable=False),
    pa.field("image", pa.string()),
    pa.field("reject", pa.string()),
    pa.field("detail", pa.string()),
]

# Width and height in pixels for which a row was annotated: of `image`, then of each of `more_images`. Null: unknown.
_SIZES = pa.field("sizes", pa.list_(pa.float64()))

DIALOGUE_TURN = pa.struct([pa.field("user", pa.string()), pa.field("assistant", pa.string())])

ANNOTATIONS: dict[str, pa.Schema] = {
    "caption": pa.schema([*_COMMON, pa.field("caption", pa.string())]),
    "open_question": pa.schema([*_COMMON, pa.field("question", pa.string()), pa.field("answer", pa.string())]),
    "multiple_choice": pa.schema(
        [
            *_COMMON,
            pa.field("question", pa.string()),
            pa.field("choices", pa.list_(pa.string())),
            pa.field("answer_index", pa.int32()),
            pa.field("context", pa.string()),  # hint or passage; null if the dataset has none
        ]
    ),
    # box: x1, y1, x2, y2 divided by the image's width and height, in [0, 1]
    "referring": pa.schema(
        [*_COMMON, pa.field("phrase", pa.string()), pa.field("box", pa.list_(pa.float64())), _SIZES]
    ),
    # The images of a row are `image`, then `more_images` (null: no others). The last ones fill the `<image>`
    # placeholders of the user texts, in order; the ones before them are at the head of the conversation.
    "conversation": pa.schema(
        [
            *_COMMON,
            pa.field("turns", pa.list_(DIALOGUE_TURN)),
            pa.field("more_images", pa.list_(pa.string())),
            _SIZES,
        ]
    ),
}

# One row per distinct image of a build. `reject` is null for a usable image; else width, height are null. Width and
# height are those of the image as displayed, with its EXIF orientation applied.
# `identity` detects unchanged bytes without reading them: file|size|mtime_ns, plus |offset:size in a tar.
IMAGES = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("identity", pa.string()),  # null: there is no file
        pa.field("sha256", pa.string()),  # of the encoded bytes
        pa.field("num_bytes", pa.int64()),
        pa.field("width", pa.int32()),  # pixels
        pa.field("height", pa.int32()),
        pa.field(
            "phash", pa.uint64()
        ),  # see pipelines/images/perceptual_hash.py; null: mostly one tone, not comparable
        pa.field("reject", pa.string()),
        pa.field("detail", pa.string()),
    ]
)

# `row` is the row of the official file, `turn` the index within a conversation row (0 for other tasks), and `template`
# the id of the template that rendered the turn.
TURN = pa.struct(
    [
        pa.field("user", pa.string()),
        pa.field("assistant", pa.string()),
        pa.field("template", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("turn", pa.int32()),
    ]
)

# The index of an example within its dataset is its position in the files, in the order of the manifest.
EXAMPLES = pa.schema(
    [
        pa.field("images", pa.list_(pa.string())),  # image references, in order of appearance
        pa.field("image_sha256", pa.list_(pa.string())),  # of the bytes when the images table was built
        pa.field(
            "image_bytes", pa.list_(pa.int32())
        ),  # number of bytes; this and sha256 are null if images are skipped
        pa.field("image_side", pa.list_(pa.int32())),  # the longer side, in pixels
        pa.field("turns", pa.list_(TURN)),
        pa.field("input_ids", pa.list_(pa.int32())),  # one image token per image
        pa.field("loss_mask", pa.list_(pa.bool_())),  # True: supervised
        pa.field("num_tokens", pa.int32()),
        pa.field("num_supervised", pa.int32()),
    ]
)

# `turn` is the index within a conversation row (0 for other tasks), or -1 if the complete row is rejected.
REJECTS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)

DUPLICATES = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("kept_row", pa.int64(), nullable=False),
        pa.field("similarity", pa.float32()),  # of the two turns, 0 to 1; null if the rule does not use it
        pa.field("rule", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("kept_text", pa.string()),
    ]
)

# The images and questions of a benchmark. `item` is the benchmark's own name of an image or id of a question.
BENCHMARK_IMAGES = pa.schema(
    [
        pa.field("item", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("phash", pa.uint64()),
    ]
)
BENCHMARK_QUESTIONS = pa.schema(
    [pa.field("item", pa.string(), nullable=False), pa.field("question", pa.string(), nullable=False)]
)

# The overlaps of a dataset with benchmarks: one entry per row image (turn -1) or turn, benchmark and `kind`. The kinds
# are equal image `bytes`, `perceptual` similarity of the images, and a `question` that shares words with a benchmark's.
OVERLAPS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("distance", pa.int32()),  # of two images, in bits of 64; null for questions
        pa.field("image", pa.string()),  # the row's image; null for questions
        pa.field("words", pa.string()),  # that both questions contain; null for images
    ]
)

# Hugging Face `Image()` layout, so that datasets.load_dataset("parquet", …) decodes the images.
HF_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

SHARD = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),  # position in the order of all samples
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("example", pa.int64(), nullable=False),
        pa.field("images", pa.list_(HF_IMAGE)),
        pa.field("image_sha256", pa.list_(pa.string())),  # of the bytes, or of the referenced file
        pa.field("turns", pa.list_(TURN)),
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("loss_mask", pa.list_(pa.bool_())),
        pa.field("num_images", pa.int16()),
        pa.field("num_tokens", pa.int32()),  # one token per image
        pa.field("num_supervised", pa.int32()),
    ]
)

# `lengths.parquet` next to the shards, from which a packing plan is built: one row per sample, in the order of samples.
LENGTHS = pa.schema(
    [pa.field("num_tokens", pa.int32(), nullable=False), pa.field("num_images", pa.int16(), nullable=False)]
)


# Reject reasons of rows that are skipped deliberately, since nothing is wrong with them: those of another split, and
# those that decontamination drops (pipelines/decontamination/match.py).
SKIPS = frozenset({"other_split", "benchmark"})
WHOLE_ROW = -1  # the turn index of a reject that applies to the complete row
