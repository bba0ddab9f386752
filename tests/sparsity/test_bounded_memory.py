"""Pruning holds the embeddings, one block and what the method needs beside it: never the whole model."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from benchmarks.memory import peak_memory
from benchmarks.random_llama import random_llama
from shears.sparsity import activations
from shears.sparsity.stage import sparsify
from tests.tiny import VOCABULARY, tiny_model
