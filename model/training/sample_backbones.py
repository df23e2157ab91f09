"""Trains small backbones on the sample corpus, so that the sample recipe needs no hub: a CLIP and a Llama.

`python -m model.training.sample_backbones JOB.json`; JOB = {"corpus", "output", "image_size", "vision_steps",
"llm_steps", "seed"}. They are saved like hub models: `output/vision` (CLIPModel, image processor, tokenizer) and
`output/llm` (LlamaForCausalLM, tokenizer), so that all later code treats them like real ones.
"""

import io
import json
import logging
import math
import random
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from model import lifeline
from pipelines.core.errors import StoreError
from pipelines.core.files import explain_full_disk
from pipelines.schema import IMAGE_TOKEN

VOCABULARY = 768
CAPTION_TOKENS = 64  # maximum per caption
DOCUMENT_TOKENS = 160  # maximum per text for the language model
VISION_BATCH, LLM_BATCH = 64, 16  # small models learn more from many cheap steps than from few expensive ones
LOG_EVERY = 25  # steps

log = logging.getLogger("backbones")


def train_backbones(
    corpus: Path, output: Path, *, vision_steps: int, llm_steps: int, image_size: int = 32, seed: int = 0
) -> dict[str, float]:
    """Trains both on the official files of a sample corpus and saves them; returns their last losses.

    The same seed, machine and number of threads give the same weights. Raises FileNotFoundError for a missing file.
    """
    captions = list(read_captions(corpus / "COYO"))  # short captions: they name the shapes without their positions
    documents = read_documents(corpus)
    random.Random(seed).shuffle(documents)
    tokenizer = train_tokenizer(documents)
    log.info("%d captioned images, %d texts, vocabulary of %d tokens", len(captions), len(documents), len(tokenizer))

    torch.manual_seed(seed)
    vision, vision_loss = train_vision(captions, tokenizer, image_size, vision_steps, seed)
    vision.save_pretrained(output / "vision")
    _image_processor(image_size).save_pretrained(output / "vision")
    tokenizer.save_pretrained(output / "vision")

    torch.manual_seed(seed)
    llm, llm_loss = train_llm(documents, tokenizer, llm_steps, seed)
    llm.save_pretrained(output / "llm")
    tokenizer.save_pretrained(output / "llm")
    return {"vision_loss": vision_loss, "llm_loss": llm_loss}


# Fixed texts of questions, instructions and chat format, each a single token: this halves the tokens of an example and
# thus the time of the second stage. Any other text works too, with more tokens.
PHRASES = (
    "A person talks with an assistant that looks at pictures and answers truthfully.",
    "\nHuman:",
    "\nAI:",
    "\nA.",
    "\nB.",
    "\nC.",
    "\nD.",
    " top left",
    " top right",
    " bottom left",
    " bottom right",
    " Is there a",
    " in the image?",
    " What color is the",
    " What shape is",
    " What is at the",
    " Where is the",
    " How many shapes are there?",
    " Which word is printed?",
    " small or large?",
    " left of the",
    " right of the",
    " Say in one sentence what the image shows.",
    " Write the alt text that a web page would give this image.",
    " Reply with one word or a short phrase.",
    "\nReply with the letter of the right option.",
    " Give the box of the one thing called",
    " By its look alone, find",
    " and give its box.",
    " Which short phrase, with its place, picks out the thing in the box",
    " Which short phrase, from its look alone, picks out the thing in the box",
    " Read the description and give the box of what it describes:",
    " Describe the thing in the box",
    " in a full phrase that fits nothing else here.",
)


def read_captions(directory: Path) -> Iterator[tuple[bytes, str]]:
    """Yields (JPEG, caption) for every complete sample in the webdataset tars of a directory."""
    for path in sorted(directory.glob("*.tar")):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                content = tar.extractfile(member)
                if content is not None:
                    samples.setdefault(key, {})[extension] = content.read()
        for sample in samples.values():
            caption = sample.get("txt", b"").decode()
            if caption and sample.get("jpg", b"").endswith(b"\xff\xd9"):  # a complete JPEG ends with this marker
                yield sample["jpg"], caption


def read_documents(corpus: Path) -> list[str]:
    """Returns the language model's training texts: captions, descriptions, and questions with answers about them.

    They come from the official files of BlipCapFilt, COYO, LLaVA (conversations), and A-OKVQA (rationale, question and
    choices).
    """
    documents = [caption for folder in ("BLIP", "COYO") for _, caption in read_captions(corpus / folder)]
    for path in sorted((corpus / "llava_instruct").glob("*.json")):
        for row in json.loads(path.read_text()):
            texts = [message["value"].replace(IMAGE_TOKEN, "").strip() for message in row["conversations"]]
            if all(texts):
                speakers = ["Human" if message["from"] == "human" else "AI" for message in row["conversations"]]
                documents.append("".join(f"\n{who}: {text}" for who, text in zip(speakers, texts, strict=True)))
    described: dict[int, str] = {}  # image → its description and all its multiple-choice questions
    for row in json.loads((corpus / "A-OKVQA" / "aokvqa_v1p0_train.json").read_text()):
        if row["question"] and row["correct_choice_idx"] < len(row["choices"]):
            options = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
            answer = "ABCD"[row["correct_choice_idx"]]
            before = described.get(row["image_id"], row["rationales"][0])
            described[row["image_id"]] = f"{before}\nHuman: {row['question']}{options}\nAI: {answer}"
    documents += described.values()
    return documents


def train_tokenizer(texts: list[str]) -> FastTokenizer:
    """Trains a byte-level BPE tokenizer, which encodes any text and has single tokens for the words of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    return FastTokenizer(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[IMAGE_TOKEN],
        clean_up_tokenization_spaces=False,
    )


def train_vision(
    captions: list[tuple[bytes, str]], tokenizer: FastTokenizer, image_size: int, steps: int, seed: int
) -> tuple[CLIPModel, float]:
    """Trains a CLIP of about 0.7M parameters with the contrastive loss over batches of (image, caption)."""
    width = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={
            **width,
            **special,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CAPTION_TOKENS,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**width, "num_hidden_layers": 3, "image_size": image_size, "patch_size": image_size // 4},
        projection_dim=96,
    )
    model = CLIPModel(config)
    pixels = _pixels(_image_processor(image_size), [jpeg for jpeg, _ in captions])
    ids = _padded(tokenizer, [caption for _, caption in captions], CAPTION_TOKENS)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        tokens = _trimmed(ids[rows], tokenizer.pad_token_id)
        mask = tokens != tokenizer.pad_token_id
        return model(input_ids=tokens, attention_mask=mask, pixel_values=pixels[rows], return_loss=True).loss

    return model, _optimise("vision", model, loss, len(captions), Schedule(VISION_BATCH, steps, 1e-3, seed))


def train_llm(documents: list[str], tokenizer: FastTokenizer, steps: int, seed: int) -> tuple[LlamaForCausalLM, float]:
    """Trains a Llama of about 1M parameters on text only."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        initializer_range=0.08,  # about 1/√width; the usual 0.02 suits wide models but makes narrow ones start slowly
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    ids = _padded(tokenizer, documents, DOCUMENT_TOKENS)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        tokens = _trimmed(ids[rows], tokenizer.pad_token_id)
        mask = tokens != tokenizer.pad_token_id
        return model(input_ids=tokens, attention_mask=mask, labels=tokens.masked_fill(~mask, -100)).loss

    return model, _optimise("llm", model, loss, len(documents), Schedule(LLM_BATCH, steps, 2e-3, seed))


@dataclass(frozen=True)
class Schedule:
    """How a backbone is trained. batch: rows per step. learning_rate: its peak. seed: of the order of the rows."""

    batch: int
    steps: int
    learning_rate: float
    seed: int


def _optimise(
    name: str, model: torch.nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor], rows: int, schedule: Schedule
) -> float:
    """Trains with AdamW, warm-up and cosine decay, in epochs over shuffled rows; returns the mean of recent losses."""
    batch, steps = schedule.batch, schedule.steps
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = min(50, steps // 10 + 1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    generator = torch.Generator().manual_seed(schedule.seed)
    order = torch.randperm(rows, generator=generator)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(1, steps + 1):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(rows, generator=generator)])
        chosen, order = order[:batch], order[batch:]
        loss = loss_of(chosen)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        losses.append(loss.item())
        if step % LOG_EVERY == 0 or step == steps:
            recent, seconds = sum(losses[-LOG_EVERY:]) / len(losses[-LOG_EVERY:]), time.monotonic() - started
            log.info("%s step %d/%d loss %.4f (%.0f s)", name, step, steps, recent, seconds)
    model.eval()
    return recent


def _padded(tokenizer: FastTokenizer, texts: list[str], length: int) -> torch.Tensor:
    """Returns token ids (number of texts, length): begin token, text, end token, padding; long texts are truncated."""
    ids = torch.full((len(texts), length), tokenizer.pad_token_id)
    for row, tokens in enumerate(tokenizer(texts, add_special_tokens=False)["input_ids"]):
        tokens = [tokenizer.bos_token_id, *tokens[: length - 2], tokenizer.eos_token_id]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


def _trimmed(tokens: torch.Tensor, pad: int) -> torch.Tensor:
    """Removes the columns that are padding in every row."""
    return tokens[:, : int((tokens != pad).sum(1).max())]


def _image_processor(image_size: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"height": image_size, "width": image_size}, do_center_crop=False, do_resize=True, resample=3
    )


def _pixels(processor: CLIPImageProcessorPil, jpegs: list[bytes]) -> torch.Tensor:
    """Returns (number of images, 3, image size, image size); decodes in groups to bound the memory."""
    groups = []
    for start in range(0, len(jpegs), VISION_BATCH):
        images = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs[start : start + VISION_BATCH]]
        groups.append(processor(images, return_tensors="pt")["pixel_values"])
    return torch.cat(groups)


def main() -> None:
    lifeline.hold()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    job = json.loads(Path(sys.argv[1]).read_text())
    output = Path(job.pop("output"))
    try:
        with explain_full_disk(output, StoreError):
            train_backbones(Path(job.pop("corpus")), output, **job)
    except StoreError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
