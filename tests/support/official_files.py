"""Tiny official files of every source, with two good rows each; one text of the second row contains the word `cafe`."""

import copy
import io
import json
import tarfile
from pathlib import Path
from typing import Any

DIALOGUES = [
    {
        "id": str(number),
        "image": f"{number}.jpg",
        "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": "A cup."}],
    }
    for number, question in enumerate(("What is it?", "What is in the cafe?"))
]
TEXT_DIALOGUES = [
    {"id": row["id"], "conversations": [{**turn, "value": turn["value"].replace("<image>\n", "")} for turn in talk]}
    for row in DIALOGUES
    if (talk := row["conversations"])
]
CHATS = [
    {
        "images": [f"{number}.jpg", "other.jpg"],
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "A cup."}],
    }
    for number, question in enumerate(("What is <image>, and <image>?", "What is in the cafe?"))
]
LLAVA_PROBLEMS = [
    {
        "id": str(number),
        "image": f"{number}/image.png",
        "conversations": [
            {"from": "human", "value": f"{question}\nContext: N/A\nOptions: (A) a cup (B) a dog\n<image>"},
            {"from": "gpt", "value": "LECTURE: Look.\nSOLUTION: It barks.\n###\nANSWER: B."},
        ],
    }
    for number, question in enumerate(("What is it?", "What is in the cafe?"))
]
EXPRESSIONS = {
    "images": [
        {"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 50, "caption": caption}
        for n, caption in enumerate(("left cup", "the cafe"))
    ],
    "annotations": [{"id": n, "image_id": n, "bbox": [10, 10, 20, 20]} for n in range(2)],
}
SAMPLES = [
    ("0.jpg", b"jpeg"),
    ("0.txt", b"a cup"),
    ("0.json", b"{}"),
    ("1.jpg", b"jpeg"),
    ("1.txt", b"a cafe"),
    ("1.json", b"{}"),
]

# source → file → content, for a tar its members
OFFICIAL: dict[str, dict[str, Any]] = {
    "blipcapfilt": {"00000.tar": SAMPLES},
    "coyo100m": {"00000.tar": SAMPLES},
    "vqav2": {
        "v2_OpenEnded_mscoco_train2014_questions.json": {
            "info": {},
            "questions": [
                {"question_id": n, "image_id": n, "question": question}
                for n, question in enumerate(("What is it?", "Is it a cafe?"))
            ],
        },
        "v2_mscoco_train2014_annotations.json": {
            "info": {},
            "annotations": [{"question_id": n, "image_id": n, "multiple_choice_answer": "yes"} for n in range(2)],
        },
    },
    "aokvqa": {
        "aokvqa_v1p0_train.json": [
            {
                "question_id": f"q{n}",
                "image_id": n,
                "question": question,
                "choices": ["a", "b"],
                "correct_choice_idx": n,
            }
            for n, question in enumerate(("What is it?", "Is it a cafe?"))
        ]
    },
    **{name: {f"finetune_{name}_train.json": EXPRESSIONS} for name in ("refcoco", "refcoco+", "refcocog")},
    "gqa": {
        "train_balanced_questions.json": {
            "01": {"imageId": "n1", "question": "What is it?", "answer": "cup", "fullAnswer": "It is a cup."},
            "02": {"imageId": "n2", "question": "Is it a cafe?", "answer": "yes", "fullAnswer": "Yes."},
        }
    },
    "ocrvqa": {
        "dataset.json": {
            "01": {"imageURL": "http://x/1.jpg", "questions": ["Who wrote it?"], "answers": ["She"], "split": 1},
            "02": {"imageURL": "http://x/2.jpg", "questions": ["The cafe?"], "answers": ["She"], "split": 1},
        }
    },
    "vsr": {
        "random/train.jsonl": [
            {"caption": caption, "relation": "in", "label": n, "image_link": f"http://x/train2017/{n}.jpg"}
            for n, caption in enumerate(("The cup is in the car.", "The cup is in the cafe."))
        ]
    },
    "scienceqa": {
        "problems.json": {
            str(n): {"question": question, "choices": ["a", "b"], "answer": n, "image": "image.png", "split": "train"}
            for n, question in enumerate(("What is it?", "Is it a cafe?"))
        }
    },
    "scienceqa_llava": {"llava_train_QCM-LEPA.json": LLAVA_PROBLEMS},
    "visual_genome": {
        "region_descriptions.json": [
            {
                "id": n,
                "regions": [{"image_id": n, "x": 10, "y": 10, "width": 20, "height": 20, "phrase": phrase}],
            }
            for n, phrase in enumerate(("a cup", "the cafe"))
        ],
        "image_data.json": [
            {"image_id": n, "url": f"http://x/VG_100K/{n}.jpg", "width": 100, "height": 50} for n in range(2)
        ],
    },
    "llava150k": {"conversation_58k.json": DIALOGUES},
    "sharegpt": {"sharegpt.json": TEXT_DIALOGUES},
    "llava": {"chats.jsonl": CHATS},
}


def official(name: str) -> dict[str, Any]:
    """Returns a copy of a source's files, for a test to change and write."""
    return copy.deepcopy(OFFICIAL[name])


def encoded(file: str, content: Any) -> bytes:
    if file.endswith(".tar"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in content:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return buffer.getvalue()
    if file.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    return json.dumps(content).encode()


def write_official(root: Path, files: dict[str, Any]) -> None:
    """Writes each file below `root`, with content that is bytes unchanged."""
    for file, content in files.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else encoded(file, content))
