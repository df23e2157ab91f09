"""The Arrow schemas: the one language that all stages speak.

Annotation batches hold one row per row of the official file, in its order, good or bad: a row that the reader
cannot use has `reject` set to a reason and null fields. So rows are conserved from the first step on.
"""

import pyarrow as pa

# Every annotation row: its number in the official file, its image (see pipelines/images.py; null: text only),
# and, if the reader could not use it, why (`reject`: a short stable name; `detail`: what exactly, for a person).
_COMMON = [
    pa.field("row", pa.int64(), nullable=False),
    pa.field("image", pa.string()),
    pa.field("reject", pa.string()),
    pa.field("detail", pa.string()),
]

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
            pa.field("context", pa.string()),  # hint or passage; null where the dataset has none
        ]
    ),
    # box: x1, y1, x2, y2 divided by image width and height, in [0, 1]
    "referring": pa.schema([*_COMMON, pa.field("phrase", pa.string()), pa.field("box", pa.list_(pa.float64()))]),
    # Pictures: `image`, then `more_images` (null: no others). The last of them stand where the user texts have an
    # `<image>`, in order; those before them, all where there is none, at the head of the conversation.
    "conversation": pa.schema(
        [*_COMMON, pa.field("turns", pa.list_(DIALOGUE_TURN)), pa.field("more_images", pa.list_(pa.string()))]
    ),
}

# One row per distinct image of a build. `reject` is null for a usable image; else width, height are null.
# `identity` tells unchanged bytes without opening them: file|size|mtime_ns, in a tar |offset:size too.
IMAGES = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("identity", pa.string()),  # null: there is no file
        pa.field("sha256", pa.string()),  # of the encoded bytes
        pa.field("num_bytes", pa.int64()),
        pa.field("width", pa.int32()),  # pixels
        pa.field("height", pa.int32()),
        pa.field("phash", pa.uint64()),  # see pipelines/perceptual.py; null: mostly of one tone, so not to be compared
        pa.field("reject", pa.string()),
        pa.field("detail", pa.string()),
    ]
)

# `row` is the row of the official file, `turn` the place inside a conversation row (0 for the other tasks); `template`
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

# An example's number within its dataset is its place in the files, taken in the order of the manifest.
EXAMPLES = pa.schema(
    [
        pa.field("images", pa.list_(pa.string())),  # image references, in the order they appear
        pa.field("image_sha256", pa.list_(pa.string())),  # what their bytes were when the images table was made
        pa.field("image_bytes", pa.list_(pa.int32())),  # and how many; both null where images are skipped
        pa.field("image_side", pa.list_(pa.int32())),  # the longer one, in pixels
        pa.field("turns", pa.list_(TURN)),
        pa.field("input_ids", pa.list_(pa.int32())),  # one image token per image
        pa.field("loss_mask", pa.list_(pa.bool_())),  # True: supervised
        pa.field("num_tokens", pa.int32()),
        pa.field("num_supervised", pa.int32()),
    ]
)

# `turn` is the place inside a conversation row (0 for the other tasks); -1 where the whole row is meant.
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
        pa.field("similarity", pa.float32()),  # of the two turns, 0 to 1; null where the rule needs none
        pa.field("rule", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("kept_text", pa.string()),
    ]
)

# What a benchmark shows and asks. `item`: what the benchmark calls it, a picture's name or a question's id.
BENCHMARK_PICTURES = pa.schema(
    [
        pa.field("item", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("phash", pa.uint64()),
    ]
)
BENCHMARK_QUESTIONS = pa.schema(
    [pa.field("item", pa.string(), nullable=False), pa.field("question", pa.string(), nullable=False)]
)

# Where a dataset and a benchmark meet: one row for each row's picture (turn -1) or turn, benchmark and `kind`: the
# picture has the benchmark's `bytes`, is `perceptual`ly the same, or the `question` shares words with the benchmark's.
OVERLAPS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("distance", pa.int32()),  # of two pictures, in bits of 64; null for questions
        pa.field("image", pa.string()),  # the row's picture; null for questions
        pa.field("words", pa.string()),  # that both questions hold; null for pictures
    ]
)

# Hugging Face `Image()` layout, so that datasets.load_dataset("parquet", …) shows pictures.
HF_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

SHARD = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),  # place in the order of all samples
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("example", pa.int64(), nullable=False),
        pa.field("images", pa.list_(HF_IMAGE)),
        pa.field("image_sha256", pa.list_(pa.string())),  # of the bytes; of a reference, of its file
        pa.field("turns", pa.list_(TURN)),
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("loss_mask", pa.list_(pa.bool_())),
        pa.field("num_images", pa.int16()),
        pa.field("num_tokens", pa.int32()),  # one token per image
        pa.field("num_supervised", pa.int32()),
    ]
)

# `lengths.parquet` beside the shards: one row a sample, in the order of all samples. What a packing plan is made from.
LENGTHS = pa.schema(
    [pa.field("num_tokens", pa.int32(), nullable=False), pa.field("num_images", pa.int16(), nullable=False)]
)
