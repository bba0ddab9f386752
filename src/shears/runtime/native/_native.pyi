"""The C++ extension (csrc/binding.cpp). Addresses are those of tensors, which the caller keeps alive."""

from collections.abc import Sequence

class Pool:
    """A pool of threads; the calling thread is one of them."""

    def __init__(self, threads: int) -> None: ...
    @property
    def size(self) -> int: ...

class HugeBuffer:
    """Copies of tensors in 2 MB pages, each aligned to 64 bytes and followed by 64 readable bytes."""

    def __init__(self) -> None: ...
    def copy(self, address: int, bytes: int) -> int: ...
    @property
    def bytes(self) -> int: ...

class Matrix:
    """A weight in panel order (csrc/matrix.h); dense if `masks` and `offsets` are 0.

    `scales` are of i8 (fp32 by row) and i4 (fp16 by panel and block), `zeros` of i4.
    """

    def __init__(
        self,
        values: int,
        rows: int,
        cols: int,
        masks: int,
        data: int,
        offsets: int,
        scales: int = 0,
        zeros: int = 0,
    ) -> None: ...
    @property
    def values(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...

class LowRank:
    """An update scaling * B A of a weight."""

    def __init__(self, a: Matrix, b: Matrix, scaling: float) -> None: ...

def multiply(
    matrix: Matrix, x: int, m: int, y: int, pool: Pool, bf16: bool = False, update: LowRank | None = None
) -> None:
    """Write y = W x for m rows of x; both fp32, or both bf16."""

def multiply_many(
    matrices: Sequence[Matrix],
    x: int,
    m: int,
    y: Sequence[int],
    pool: Pool,
    bf16: bool = False,
    updates: Sequence[LowRank | None] = ...,
) -> None:
    """Write the products of several matrices with the same x."""

def pack_dense(values: int, weight: int, rows: int, cols: int, data: int) -> None:
    """Write a row-major weight in panel order; `data` has room for whole panels and groups."""

def read_memory(address: int, bytes: int, pool: Pool) -> int:
    """Read memory as fast as the pool can; return the sum of its 64-bit words. For benchmarks."""

TOKEN_CLASSES: int
"""Groups of numbers of tokens that share a choice of a walk: 1, 2, 3 to 4, 5 to 8, 9 to 16, more."""

def tokens_of(token_class: int) -> int:
    """Return the number of tokens that stands for a class in a measurement."""

def candidates(values: int, sparse: bool, token_class: int) -> list[str]:
    """Return the names of the walks that this machine can take, the default first."""

def chosen(values: int, sparse: bool, token_class: int) -> str:
    """Return the name of the walk that products take."""

def choose(values: int, sparse: bool, token_class: int, name: str) -> bool:
    """Let products take a walk; return False if there is no such candidate."""

def forget_choices() -> None:
    """Let all products take the default walks."""

def measure_speed(values: int, sparse: bool, tokens: int, bytes: int, turns: int, pool: Pool) -> list[float]:
    """Return seconds per weight, bytes read per weight, and bytes per second of reading memory, all medians."""

def time_candidates(values: int, sparse: bool, bytes: int, seconds: float) -> list[list[tuple[str, float]]]:
    """Return for every token class the candidates and their seconds per weight, on a random weight of `bytes` bytes."""

def features() -> dict[str, str | bool]:
    """Return the instruction set in use (`isa`), and whether this machine runs `portable`, `avx2`, `avx512`, `amx`,
    `neon` and `neon_dot` (NEON with the dot product of 8-bit integers)."""

def select_isa(name: str) -> None:
    """Use another instruction set from now on, for tests; ValueError if this machine lacks it."""

class DecoderShape:
    """Sizes and limits of a decoder (csrc/decoder.h)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    eps: float
    query_scale: float
    rope_scale: float
    max_length: int
    max_sequences: int
    chunk: int
    bf16_cache: bool

class DecoderWeights:
    """The weights of a decoder, layer by layer; an address of 0 means that there is none."""

    def add_layer(
        self, input_norm: int, output_norm: int, query_norm: int, key_norm: int, window: int, rotates: bool
    ) -> None: ...
    def vary_layer(self, attention_norm: int, forward_norm: int, whole: bool, is_local: bool) -> None:
        """Set what the last layer does differently from Llama's: norms of its outputs; `whole`, one norm of queries and
        one of keys over all heads; rotation by the local frequencies."""

    def vary_model(
        self,
        is_gelu: bool,
        rotary: int,
        local_frequencies: int,
        embedding_scale: float,
        residual_scale: float,
        logit_scale: float,
    ) -> None:
        """Set what the model does differently from Llama; `rotary` numbers of a head rotate (0: all)."""

    def set_delta(self, kernel: int, decay: int, step_bias: int, norm: int) -> None:
        """Let the last layer be a gated delta net."""

    def set_delta_shape(
        self, key_heads: int, value_heads: int, key_size: int, value_size: int, window: int
    ) -> None: ...
    def set_linear(self, name: str, weight: Matrix, bias: int) -> None:
        """Set a linear of the last layer, q_proj to down_proj."""

    def set_update(self, name: str, data: int, is_bf16: bool, rank: int, first: int) -> None:
        """Set the B of a linear's update; the update's A is rows [first, first + rank) of the common A."""

    def set_down(self, name: str, down: Matrix) -> None:
        """Set the common A of all linears with the same input as the named one."""

    def set_ends(
        self,
        values: int,
        embeddings: int,
        scales: int,
        zeros: int,
        norm: int,
        inverse_frequencies: int,
        head: Matrix,
    ) -> None: ...

class Decoder:
    """A model like Llama with its cache; the caller checks sequences, lengths and tokens."""

    def __init__(self, shape: DecoderShape, weights: DecoderWeights, pool: Pool) -> None: ...
    def prefill(self, sequence: int, tokens: int, count: int, logits: int) -> None: ...
    def step(self, sequences: int, counts: int, number: int, tokens: int, logits: int) -> None: ...
    def score(self, tokens: int, count: int, logits: int) -> None: ...
    def drop(self, sequence: int) -> None: ...
    def shorten(self, sequence: int, length: int) -> None: ...
    def copy(self, source: int, target: int, count: int) -> None: ...
    def length(self, sequence: int) -> int: ...
    @property
    def cache_bytes(self) -> int: ...
