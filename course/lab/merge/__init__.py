"""`python -m course merge RECIPE.yaml`: merge models tensor by tensor, as mergekit's configuration files say."""

import json
import shutil
import sys
from pathlib import Path

import torch

from course.lab.data import DataError
from course.lab.files import written_whole
from course.lab.merge.checkpoints import Checkpoint, ShardWriter
from course.lab.merge.recipe import read_recipe
from course.lab.runtime import progress_bar

RECIPE = "merge_recipe.yaml"  # what a merged folder holds beside the model
BESIDE = ("tokenizer*", "special_tokens_map.json", "generation_config.json", "chat_template*", "vocab*", "merges.txt")


def merge(recipe, folder, progress=False):
    """Write what a recipe describes into a folder that transformers loads, whole or not at all; returns the folder.

    Tensors are read, merged in FP32 and written one after the other: memory holds one of each model, and a shard of the
    result. The configuration and tokenizer are those of the base model, or of the first one.

    Raises:
        DataError: a recipe that cannot be followed, or models that do not fit together; nothing is written.
        FileExistsError: the folder is there, and not made by a merge.
    """
    folder, text = Path(folder), Path(recipe).read_text(encoding="utf-8")
    if folder.exists() and not (folder / RECIPE).exists():
        raise FileExistsError(f"{folder} is there and was not made by a merge; it was not replaced")
    recipe = read_recipe(text)
    models = {name: Checkpoint(name) for name in recipe.names}
    plan = recipe.plan({name: model.shapes for name, model in models.items()})
    first = models[recipe.base or recipe.names[0]]
    config = json.loads((first.folder / "config.json").read_text(encoding="utf-8"))
    with written_whole(folder) as temporary:
        temporary.mkdir()
        writer = ShardWriter(temporary)
        for step in progress_bar(progress, plan, desc="merge", unit="tensor"):
            tensors = [models[model].tensor(name) for model, name in step.sources]
            merged = step.merge(step.name, tensors).to(recipe.dtype or tensors[0].dtype)
            del tensors  # before the next ones are read
            writer.add(step.name, merged)
        dtype = writer.finish()
        config |= {"num_hidden_layers": recipe.layers, "dtype": str(dtype).removeprefix("torch.")}
        config.pop("torch_dtype", None)
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / RECIPE).write_text(text, encoding="utf-8")
        for pattern in BESIDE:
            for file in first.folder.glob(pattern):
                shutil.copy(file, temporary / file.name)
    return folder


def main(arguments):
    folder = arguments.out or arguments.recipe.with_suffix("")
    try:
        with torch.inference_mode():
            merge(arguments.recipe, folder, progress=True)
    except (DataError, OSError, ValueError) as error:
        print(f"merge: {error}", file=sys.stderr)
        return 2
    print(f"{folder} holds the merged model")
    return 0
