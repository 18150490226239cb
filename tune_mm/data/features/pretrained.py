"""Frozen models of images and of text from local folders, as `save_pretrained` of Hugging Face's
transformers writes them: config.json, model.safetensors, and what prepares their inputs
(preprocessor_config.json, the tokenizer's files).

transformers is an optional extra, loaded here alone and by `extract` only. Nothing is downloaded,
no code of a model's own is run and no pickled weights are read.

Shapes: B batch, H x W the images that a model takes, T and L steps, D channels.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tune_mm._vision import torchvision
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.features.store import Half
from tune_mm.data.images import augment

# What decides the values: weights, configuration and tokenizer, but not a README beside them.
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
LOCAL = {"local_files_only": True, "trust_remote_code": False}
SCALE_MIN = 0.08  # torchvision's RandomResizedCrop

Ids = NDArray[np.int64]
Pixels = NDArray[np.float32]


def transformers() -> ModuleType:
    """The library, quiet and offline. Raises DataError when it is not installed."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torchvision()  # which its image processors import
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise DataError(
            f"features are extracted with transformers: pip install 'tune_mm[features]' ({error})"
        ) from error
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def digest(folder: Path, option: str) -> str:
    """16 hexadecimal digits of a model's files. Raises DataError when the folder holds no such
    model.
    """
    if not (folder / "config.json").is_file():
        raise DataError(
            f"{option}: must be a folder with config.json and model.safetensors, got {folder}"
        )
    found: set[Path] = set()
    for pattern in FILES:
        found.update(folder.glob(pattern))
    files = sorted(found)
    if not any(path.suffix == ".safetensors" for path in files):
        raise DataError(
            f"{option}: no weights *.safetensors in {folder}; pickled weights (.bin) are not read"
        )
    total = hashlib.blake2b(digest_size=8)
    try:
        for path in files:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256")
            total.update(path.name.encode() + content.digest())
    except OSError as error:
        raise DataError(f"{option}: {path} cannot be read: {error.strerror or error}") from error
    return total.hexdigest()


def _load(kind: str, folder: Path, option: str, **settings: Any) -> Any:
    """`transformers.<kind>.from_pretrained(folder)`. Raises DataError."""
    try:
        return getattr(transformers(), kind).from_pretrained(folder, **LOCAL, **settings)
    except DataError:
        raise
    except Exception as error:  # whatever the library raises for files that it does not look for
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{option}: {folder}: {kind} cannot load it: {reason}") from error


def _model(folder: Path, option: str, device: torch.device) -> Any:
    """The model in evaluation. Raises DataError also when its file lacks weights, which would be
    random ones.
    """
    model, found = _load(
        "AutoModel", folder, option, use_safetensors=True, output_loading_info=True
    )
    # The pooler is made for the first token's use as a sentence; last hidden states do not pass it.
    wrong = sorted(name for name in found["missing_keys"] if not name.startswith("pooler"))
    wrong += [str(key) for key in sorted(found["mismatched_keys"])]
    if wrong:
        raise DataError(
            f"{option}: {folder}: the weights are not those of config.json, "
            f"the first missing: {wrong[0]}"
        )
    return model.eval().requires_grad_(False).to(device)


def _states(model: Any, option: str, inputs: dict[str, Any]) -> torch.Tensor:
    """Last hidden states [B, T, D]. Raises DataError when the model gives none."""
    with torch.inference_mode():
        out = getattr(model(**inputs), "last_hidden_state", None)
    if out is None or out.dim() != 3:
        raise DataError(
            f"{option}: must be a model that gives last hidden states [B, T, D], such as ViT or BERT"
        )
    states: torch.Tensor = out
    return states


def _half(states: torch.Tensor, option: str) -> Half:
    """fp16. Raises DataError for values that it cannot hold."""
    values: Half = states.cpu().to(torch.float16).numpy()
    if not np.isfinite(values).all():
        raise DataError(f"{option}: the model's hidden states must be finite and below 65504")
    return values


class ImageModel:
    """A frozen vision transformer. size: H x W. shape: (T, D)."""

    option = "--image-model"

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.processor = _load("AutoImageProcessor", folder, self.option, backend="pil")
        self.model = _model(folder, self.option, device)
        sample = self.plain(Image.new("RGB", (64, 48)))
        self.size: tuple[int, int] = sample.shape[1:]
        self.shape: tuple[int, ...] = self.features(sample[None]).shape[1:]

    def plain(self, image: Image.Image) -> Pixels:
        """[3, H, W] of an RGB image, by the model's own rules (resize, perhaps a central crop,
        normalisation).
        """
        return self._processed(image)

    def view(self, image: Image.Image, generator: torch.Generator) -> Pixels:
        """[3, H, W] of a random resized crop, mirrored or not, with the model's own normalisation.

        Colours stay as they are: CGGM's colour jitter, noise, grayscale and blur are left out.
        """
        sizes = torch.tensor([[image.height, image.width]])
        top, left, height, width = augment.crop_boxes(sizes, SCALE_MIN, generator)[0].tolist()
        named = getattr(self.processor, "resample", None)
        resample = Image.Resampling(named or Image.Resampling.BILINEAR)
        box = (left, top, left + width, top + height)
        cut = image.resize((self.size[1], self.size[0]), resample, box)
        if bool(augment.flips(1, generator)[0]):
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._processed(cut, do_resize=False, do_center_crop=False)

    def _processed(self, image: Image.Image, **settings: Any) -> Pixels:
        processed = self.processor(images=[image], return_tensors="np", **settings)
        pixels: Pixels = processed["pixel_values"][0]
        return pixels

    def features(self, pixels: Pixels) -> Half:
        """[B, T, D] of [B, 3, H, W]."""
        inputs = {"pixel_values": torch.from_numpy(pixels).to(self.device)}
        return _half(_states(self.model, self.option, inputs), self.option)


class TextModel:
    """A frozen language model. length: L, the tokens of a text, special ones included. shape: (L,
    D).
    """

    option = "--text-model"

    def __init__(self, folder: Path, length: int, device: torch.device) -> None:
        self.device = device
        self.length = length
        self.tokenizer = _load("AutoTokenizer", folder, self.option)
        self.model = _model(folder, self.option, device)
        longest = getattr(self.model.config, "max_position_embeddings", length)
        if length > longest:
            most = f"at most the {longest} of the model in {folder}"
            raise DataError(f"--text-tokens: must be {most}, got {length}")
        self.special = (
            self.tokenizer.cls_token_id,
            self.tokenizer.sep_token_id,
            self.tokenizer.pad_token_id,
        )
        if None in self.special:
            raise DataError(
                f"{self.option}: its tokenizer must have [CLS], [SEP] and [PAD], as BERT's: {folder}"
            )
        self.shape: tuple[int, ...] = self.features(*self.tokens([""]))[0].shape[1:]

    def tokens(self, texts: Sequence[str | Ids]) -> tuple[Ids, NDArray[np.bool_]]:
        """Token numbers [B, L] and which of them are real, of texts or of numbers [n] without the
        special ones.

        What is longer than L is cut. Raises ValueError for numbers that the model does not know.
        """
        size = (len(texts), self.length)
        _cls, _sep, pad = self.special
        ids = np.full(size, pad, dtype=np.int64)
        mask = np.zeros(size, bool)
        largest = self.model.config.vocab_size - 1
        for row, text in enumerate(texts):
            own = self._numbers(text)
            if min(own) < 0 or max(own) > largest:
                got = f"{min(own)} to {max(own)}"
                raise ValueError(f"token numbers must be between 0 and {largest}, got {got}")
            ids[row, : len(own)] = own
            mask[row, : len(own)] = True
        return ids, mask

    def _numbers(self, text: str | Ids) -> list[int]:
        """At most L token numbers, special ones included."""
        if isinstance(text, str):
            cut = self.tokenizer(text, truncation=True, max_length=self.length)
            tokens: list[int] = cut["input_ids"]
            return tokens
        cls, sep, _pad = self.special
        words = []
        for number in text.tolist():
            if number not in self.special:
                words.append(number)
        return [cls, *words[: self.length - 2], sep]

    def features(self, ids: Ids, mask: NDArray[np.bool_]) -> tuple[Half, NDArray[np.bool_]]:
        """[B, L, D], 0 where the mask [B, L], which is given back, is False."""
        real = torch.from_numpy(mask).to(self.device)
        inputs = {"input_ids": torch.from_numpy(ids).to(self.device), "attention_mask": real.long()}
        states = _states(self.model, self.option, inputs)
        return _half(states * real[..., None], self.option), mask
